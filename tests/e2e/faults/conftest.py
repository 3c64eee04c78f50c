"""A namespace of its own, a training for each test, and the row that each test leaves in the table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.fault_harness import (
    CLAIM,
    NAMESPACE,
    Supervisor,
    Trial,
    apply,
    eventually,
    kubectl,
    shared_folder,
)
from tests.e2e.faults.fault_table import Row, versions, write_row
from tests.e2e.turns import held

PLAY = {"steps": 60, "step_s": 0.5, "later_step_s": 0.05, "save_every": 2, "together": True}
LOST_AT_MOST = 2
"""The playing worker saves every second step; so does the real one here."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that this machine and all pods see."""
    return shared_folder()


@pytest.fixture(scope="session")
def namespace(shared: Path) -> str:
    """Ours alone: with quotas and accounts that would disturb others."""
    with held(shared.parent / ".namespace.lock", alone=True):
        make_namespace(NAMESPACE, shared.parent)
    return NAMESPACE


def make_namespace(name: str, folder: Path, claim: str = CLAIM) -> None:
    """A namespace with the shared file system's claim."""
    size = {"storage": "1Ti"}
    volume: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    persistent = {"claimRef": {"name": claim, "namespace": name}, "capacity": size, "hostPath": {"path": str(folder)}}
    apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{name}-shared"},
            "spec": {**volume, **persistent},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": name},
            "spec": {**volume, "volumeName": f"{name}-shared", "resources": {"requests": size}},
        },
    )


@pytest.fixture(scope="session")
def seen() -> str:
    """When, and on what."""
    return versions()


MakeTrial = Callable[..., Trial]


@pytest.fixture
def trial(shared: Path, namespace: str) -> Iterator[MakeTrial]:
    """Makes a training that plays (keywords: of the play), in a fresh folder."""
    made: list[Trial] = []

    def make(name: str, *, nodes: int = 2, settings: dict[str, Any] | None = None, **play: Any) -> Trial:
        folder = shared / f"{name}-{os.getpid()}"
        made.append(Trial(folder, {**PLAY, **play}, nodes=nodes, settings=settings or {}))
        return made[-1]

    yield make
    for item in made:
        item.clean()


Expect = Callable[..., dict[str, Any]]


@pytest.fixture
def expect(seen: str) -> Expect:
    """Hold a training's end against what must follow the fault, and write the row."""

    def check(
        fault: str,
        trial: Trial,
        *,
        supervisor: Supervisor | None = None,
        classes: list[str],
        reads: str,
        error: str = "",
        lost_at_most: int = LOST_AT_MOST,
    ) -> dict[str, Any]:
        last = supervisor or trial.supervisors[-1]
        ended = last.wait()
        said = "\n".join(line for item in trial.supervisors for line in item.said())
        assert ended.get("error", "") == error, said
        text = said + "\n" + ended.get("message", "")
        first = next((line for line in text.splitlines() if re.search(reads, line)), "")
        assert first, f"nobody said {reads!r}:\n{text}"
        history = trial.history() if trial.directory.history.exists() else []
        assert [item["failure_class"] for item in history if item["failure_class"]] == classes, said
        lost = trial.steps_lost()
        assert lost <= lost_at_most * max(1, len(history) - 1)
        assert trial.damaged() == []
        if not error:
            assert (trial.directory.adapter).is_dir()
        eventually(f"nothing of {trial.name} is left", lambda: not trial.left(), limit_s=150)
        shown = first.replace(str(trial.folder), "…").replace(trial.name, "demo")
        told = ", ".join(dict.fromkeys(classes)) or "–"
        write_row(Row(fault, told, shown, len(history), lost, len(trial.left()), seen))
        return ended

    return check


def patch(kind: str, name: str, change: dict[str, Any], namespace: str = NAMESPACE) -> None:
    """Change an object, as a person or a controller would."""
    kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(change))
