"""The whole flow, launched from a machine that sees no shared file system: every step is a pod, training is a PyTorchJob."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster_harness import Place, Site, run_id_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

STEPS = ["start", "prepare", "train", "merge", "evaluate", "end"]


@pytest.fixture
def elsewhere(place: Place, site: Site) -> Place:
    """A laptop: its steps are pods, and what the pods share is not among its own files."""
    cluster = site.settings()["cluster"]
    cluster["steps"]["enabled"] = True
    place.write_config(cluster=cluster)
    return place


def test_a_laptop_launches_the_whole_flow_as_pods(elsewhere: Place, site: Site) -> None:
    done = elsewhere.call(elsewhere.words("run"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = elsewhere.run_directory(run_id_of(done.stdout))
    assert "workers started (2 process(es))" in done.stdout, done.stdout
    report = next(run.glob("evaluation-*/report.json"))
    assert json.loads(report.read_text())["samples"] == 2
    assert owners(run) == {1000}
    ran = {pod["metadata"]["annotations"].get("metaflow/step_name") for pod in site.items("pods")}
    assert set(STEPS) <= ran
    assert not site.jobs()


def owners(folder: Path) -> set[int]:
    """User ids of all files."""
    return {path.stat().st_uid for path in folder.rglob("*")}
