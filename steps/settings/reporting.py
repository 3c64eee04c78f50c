"""The config's section on reporting: who is told of a training, and where."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from steps.settings.section import Section

Told = Literal["gave_up", "budget", "stuck", "gate_failed", "finished"]


class Notify(Section):
    """Messages to people: one JSON POST, or a command."""

    tell: tuple[Told, ...] = ("gave_up", "budget", "stuck", "gate_failed")
    """What is told: training given up, budget used up, waiting too long for nodes, the gate not passed, all done."""
    address_from: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of the environment variable that holds the address, in the launching step; the address itself is a secret."""
    command: str = ""
    """Run with the message as JSON on its standard input; no shell."""
    stuck_after_s: float = Field(default=86400.0, gt=0)
    """In a queue for so long, in seconds, is worth a message."""


class Reporting(Section):
    """Trackers, metrics and messages, all from the launching step: pods need no credentials, and every backend is told of."""

    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "prometheus", "otlp"], ...] = ()
    """`tensorboard` and `wandb` must be installed; `prometheus` is a text file in the run directory."""
    mlflow_uri: str = ""
    """An MLflow server's address, or the ARN of SageMaker's; empty: MLFLOW_TRACKING_URI. Credentials: environment variables."""
    mlflow_experiment: str = Field(default="hyperpod-lora", min_length=1)
    """Made if it is not there."""
    otlp_endpoint: str = ""
    """Base address of a collector that takes OTLP over HTTP; empty: OTEL_EXPORTER_OTLP_ENDPOINT."""
    notify: Notify = Notify()
    """Whom a person hears from."""

    @field_validator("mlflow_uri", "otlp_endpoint")
    @classmethod
    def _holds_no_secret(cls, given: str) -> str:
        """This section is kept with the run: a password or token in an address would be, too."""
        try:
            parts = urlsplit(given)
        except ValueError as error:
            raise ValueError("is no address") from error
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "holds a user, password or token, and this is kept with the run; give them by environment variables"
            )
        if given and not given.startswith(("http://", "https://", "arn:")):
            raise ValueError("must begin with http://, https:// or, for MLflow, arn:")
        return given
