"""The door of the package: a model that has passed the gate → where it can be fetched, as a record.

Called by the flow's `publish` step. Telling it twice does no harm: what is there already is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.errors import LoraFlowError
from steps.protocol.records import Adapter, MergedModel, Published, Report
from steps.protocol.rundir import RunDir, write_json
from steps.publish import bucket, hub, registry
from steps.publish.contents import Contents, gather
from steps.report.choose import mlflow_address
from steps.report.sink import key_of
from steps.settings.plan import Plan


@dataclass(frozen=True, slots=True)
class Made:
    """What a run has made, and which run it was."""

    merged: MergedModel
    adapter: Adapter
    report: Report
    lineage: Mapping[str, Any]
    run: str
    """`<flow>/<run id>`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the process: MLflow's address and credentials, which go into no record."""

    @property
    def parents(self) -> dict[str, str]:
        """Digests of what a publication is made of."""
        return {"merged": self.merged.digest, "adapter": self.adapter.digest, "report": self.report.digest}


def publish(plan: Plan, made: Made, run: RunDir, *, progress: bucket.Progress | None = None) -> Published:
    """Hand the model on to every place that the settings name.

    Raises:
        LoraFlowError: the gate is not passed, files have changed since, or a place refused or cannot be reached.
    """
    require_gate(made)
    contents = gather(plan.settings.publish, made.merged, made.adapter)
    addresses, first = {}, made.run
    if plan.settings.publish.s3:
        address = f"{plan.settings.publish.s3}/{name_of(plan)}/{contents.identity}"
        manifest = bucket.publish(address, contents, _told(plan, made), progress=progress)
        addresses["s3"], first = address, str(manifest.get("run", made.run))
    if plan.settings.publish.hub:
        message = f"{name_of(plan)}, {made.run}"
        addresses["hub"] = hub.publish(plan.settings.publish.hub, contents, message=message)
    published = Published(
        name=name_of(plan),
        digest=contents.digest,
        what=plan.settings.publish.what,
        files=len(contents.files),
        bytes=contents.bytes,
        addresses=addresses,
        run=first,
        versions=_register(plan, made, addresses.get("s3", ""), contents),
        parents=made.parents,
    )
    write_json(run.path / f"published-{contents.identity}.json", published.to_dict())
    return published


def _register(plan: Plan, made: Made, address: str, contents: Contents) -> dict[str, str]:
    """The versions that point to the address, by registry."""
    settings, found = plan.settings.publish, {}
    tags = {"digest": contents.digest, "run": made.run, "gate": made.report.gate}
    entry = registry.Entry(name_of(plan), address, "merged" if settings.has_merged else "adapter", tags)
    if "mlflow" in settings.registries:
        server = mlflow_address(plan.settings.reporting, made.environment)
        version = registry.in_mlflow(server, made.environment, entry, _run_in_mlflow(plan, made, server))
        found["mlflow"] = f"{entry.name}/{version}"
    if "sagemaker" in settings.registries:
        found["sagemaker"] = registry.in_sagemaker(entry, settings.image)
    return found


def _run_in_mlflow(plan: Plan, made: Made, server: str) -> str:
    """MLflow's id of the training's run, if it was told of the training."""
    reporting = plan.settings.reporting
    if "mlflow" not in reporting.report_to:
        return ""
    folder = Path(made.adapter.path).parent
    return registry.run_in_mlflow(server, made.environment, reporting.mlflow_experiment, key_of(folder))


def require_gate(made: Made) -> None:
    """Nothing goes out that was not evaluated, or that did not pass.

    Raises:
        LoraFlowError: the gate is not passed, or the report is of another model.
    """
    report = made.report
    if not report.gate_passed:
        raise LoraFlowError(f"nothing is published: the gate is not passed ({report.gate})")
    for name, digest in (("merged", made.merged.digest), ("adapter", made.adapter.digest)):
        if report.parents.get(name) != digest:
            raise LoraFlowError(
                f"nothing is published: the report in {report.path} is of another {name} model than {digest[:12]}; "
                "evaluate this one (`resume evaluate`)"
            )


def name_of(plan: Plan) -> str:
    """What the model is called where it is published."""
    given = plan.settings.publish.name or f"{plan.model.name}-{plan.dataset.name}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-.")[:63] or "model"


def _told(plan: Plan, made: Made) -> dict[str, Any]:
    """What a manifest says besides the files."""
    return {
        "name": name_of(plan),
        "what": plan.settings.publish.what,
        "run": made.run,
        "parents": made.parents,
        "gate": made.report.gate,
        "lineage": dict(made.lineage),
    }
