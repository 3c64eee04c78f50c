"""The config's section on publishing: where a model goes once it has passed the gate."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from steps.settings.section import Section

BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
NAME = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$"


class Publish(Section):
    """Where a model goes that has passed the gate of the evaluation: nowhere, unless an address is given here."""

    what: Literal["merged", "adapter", "both"] = "merged"
    """What is handed on."""
    name: str = Field(default="", pattern=NAME)
    """What the model is called there; empty: `<model>-<dataset>`."""
    s3: str = ""
    """A prefix such as `s3://bucket/models`; below it the files lie in `<name>/<digest>/`, `manifest.json` is written last."""

    @property
    def is_wanted(self) -> bool:
        """Whether there is anywhere to publish to."""
        return bool(self.s3)

    @property
    def has_merged(self) -> bool:
        """The merged model is handed on."""
        return self.what != "adapter"

    @property
    def has_adapter(self) -> bool:
        """The adapter is handed on."""
        return self.what != "merged"

    @field_validator("s3")
    @classmethod
    def _names_a_bucket(cls, given: str) -> str:
        if given and not BUCKET.fullmatch(given):
            raise ValueError("must be a bucket and a prefix, such as s3://bucket/models")
        return given.rstrip("/")
