"""What the flow is given: its Parameters, made from `settings.options`, and its Config, parsed and checked.

Used by `flows/lora_flow.py`. Every command of Metaflow reads this file, `--help` too, so what only the Config needs is imported
in its parser. `clean_errors` and `FlowError` give this project's errors the form that Metaflow prints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from metaflow import FlowMutator, Parameter
from metaflow.exception import MetaflowException

from steps.errors import ConfigError, LoraFlowError, Problem
from steps.settings.options import OPTIONS, Options, help_of


class FlowError(MetaflowException):
    """One of this project's errors, in the form that Metaflow prints without a traceback."""

    def __init__(self, error: LoraFlowError) -> None:
        self.headline = error.headline
        super().__init__(str(error))


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Turn this project's errors into Metaflow's; others pass with their traceback, since they are bugs."""
    try:
        yield
    except LoraFlowError as error:
        raise FlowError(error) from error


def read_config(text: str) -> dict[str, Any]:
    """Parse the Config's YAML; a mistake in it ends the command before anything runs.

    Raises:
        MetaflowException: with all mistakes.
    """
    import yaml

    from steps.settings.config import parse_settings
    from steps.settings.yaml_text import read_yaml

    with clean_errors():
        try:
            raw = read_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError([Problem("config", f"not valid YAML: {error}")]) from error
        return parse_settings(raw).model_dump(mode="json")


class option_parameters(FlowMutator):
    """Flow decorator: one Metaflow Parameter for each field of `Options`: its name with dashes, its default, its help.

    The Config's section `run` has the first word on a default, `Options` the second.
    """

    def pre_mutate(self, mutable_flow: Any) -> None:
        """Add the Parameters (Metaflow calls this wherever it reads the flow: run, resume, Argo, in pods)."""
        config = dict(mutable_flow.configs).get("config")
        chosen = config.to_dict().get("run", {}) if config else {}
        defaults = asdict(Options()) | chosen
        for name in OPTIONS:
            parameter = Parameter(name.replace("_", "-"), default=defaults[name], help=help_of(name))
            mutable_flow.add_parameter(name, parameter)
