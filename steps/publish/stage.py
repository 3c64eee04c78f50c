"""The door of the package: a model that has passed the gate → where it can be fetched, as a record.

Called by the flow's `publish` step. Telling it twice does no harm: what is there already is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steps.errors import LoraFlowError
from steps.protocol.records import Adapter, MergedModel, Published, Report
from steps.protocol.rundir import RunDir, write_json
from steps.publish import bucket
from steps.publish.contents import gather
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
    published = Published(
        name=name_of(plan),
        digest=contents.digest,
        what=plan.settings.publish.what,
        files=len(contents.files),
        bytes=contents.bytes,
        addresses=addresses,
        run=first,
        parents=made.parents,
    )
    write_json(run.path / f"published-{contents.identity}.json", published.to_dict())
    return published


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
