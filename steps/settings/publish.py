"""The config's section on publishing: where a model goes once it has passed the gate."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from steps.settings.section import Section

BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]{1,96}", re.ASCII)
NAME = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$"


class Publish(Section):
    """Where a model goes that has passed the gate of the evaluation: nowhere, unless an address is given here."""

    what: Literal["merged", "adapter", "both"] = "merged"
    """What is handed on."""
    name: str = Field(default="", pattern=NAME)
    """What the model is called there; empty: `<model>-<dataset>`."""
    s3: str = ""
    """A prefix such as `s3://bucket/models`; below it the files lie in `<name>/<digest>/`, `manifest.json` is written last."""

    hub: str = ""
    """A private repository on the hub, `owner/name`, made if there is none; a tag with the digest names each publication."""
    registries: tuple[Literal["mlflow", "sagemaker"], ...] = ()
    """Where a version is made that points to the S3 address: MLflow (at `reporting.mlflow_uri`), SageMaker's Model Registry."""
    image: str = ""
    """Of the server that SageMaker's package names; empty: none."""

    @property
    def is_wanted(self) -> bool:
        """Whether there is anywhere to publish to."""
        return bool(self.s3 or self.hub)

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(setting, what is wrong) of what contradicts itself."""
        is_packed = "sagemaker" in self.registries
        rules = {
            "registries": (self.registries and not self.s3, "needs publish.s3: a version points to the files there"),
            "what": (
                is_packed and not self.has_merged,
                "adapter: a package holds the merged model; use merged or both",
            ),
            "image": (
                self.image and not is_packed,
                "is SageMaker's: add sagemaker to publish.registries, or leave it out",
            ),
        }
        return [(name, words) for name, (is_wrong, words) in rules.items() if is_wrong]

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

    @field_validator("hub")
    @classmethod
    def _names_a_repository(cls, given: str) -> str:
        if given and not REPOSITORY.fullmatch(given):
            raise ValueError("must be a repository's id, owner/name")
        return given
