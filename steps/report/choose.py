"""Which sinks a config asks for. Addresses and credentials that are secret come from the environment that is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from steps.report.notices import Notices, all_of, by_command, by_post
from steps.report.sink import Facts, Sink

if TYPE_CHECKING:
    from steps.report.mlflow import MLflow
    from steps.settings.reporting import Reporting


def sinks_of(reporting: Reporting, facts: Facts, environment: Mapping[str, str]) -> list[Sink]:
    """Every sink that is asked for, none of them opened yet."""
    found: list[Sink] = []
    asked = set(reporting.report_to)
    if "tensorboard" in asked:
        from steps.report.tensorboard import TensorBoard

        found.append(TensorBoard(facts))
    if "wandb" in asked:
        from steps.report.wandb import WeightsAndBiases

        found.append(WeightsAndBiases(facts))
    if mlflow := mlflow_of(reporting, facts, environment):
        found.append(mlflow)
    if asked & {"prometheus", "otlp"}:
        from steps.report.metrics import Metrics

        endpoint = reporting.otlp_endpoint or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        found.append(Metrics(facts, "prometheus" in asked, endpoint if "otlp" in asked else ""))
    if notices := notices_of(reporting, facts, environment):
        found.append(notices)
    return found


def mlflow_of(reporting: Reporting, facts: Facts, environment: Mapping[str, str]) -> MLflow | None:
    """MLflow, if it is asked for."""
    if "mlflow" not in reporting.report_to:
        return None
    from steps.report.mlflow import MLflow, server_of

    return MLflow(facts, server_of(mlflow_address(reporting, environment), environment), reporting.mlflow_experiment)


def mlflow_address(reporting: Reporting, environment: Mapping[str, str]) -> str:
    """Where MLflow is; empty: nobody says."""
    return reporting.mlflow_uri or environment.get("MLFLOW_TRACKING_URI", "")


def notices_of(reporting: Reporting, facts: Facts, environment: Mapping[str, str]) -> Notices | None:
    """Notices, if an address or a command is configured."""
    notify = reporting.notify
    address = environment.get(notify.address_from, "") if notify.address_from else ""
    ways = [by_post(address)] if address else []
    ways += [by_command(notify.command)] if notify.command else []
    if not ways:
        return None
    return Notices(facts, frozenset(notify.tell), all_of(*ways), stuck_after_s=notify.stuck_after_s)


def problems(reporting: Reporting, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(setting, what is wrong) where what is asked for has no address."""
    found = []
    if "mlflow" in reporting.report_to and not mlflow_address(reporting, environment):
        found.append(("reporting.mlflow_uri", "MLflow has no address: give it here, or as MLFLOW_TRACKING_URI"))
    if "otlp" in reporting.report_to and not (
        reporting.otlp_endpoint or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    ):
        found.append(
            ("reporting.otlp_endpoint", "the collector has no address: give it here, or as OTEL_EXPORTER_OTLP_ENDPOINT")
        )
    name = reporting.notify.address_from
    if name and not environment.get(name):
        found.append(("reporting.notify.address_from", f"{name} is not set where the flow runs: nobody would be told"))
    return found
