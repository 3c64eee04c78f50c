"""A node's Neuron driver and an image's runtime: which pairs cannot work, where both stand, what a pod does about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import ConfigError
from steps.job.agent import pod_main
from steps.job.agent.neuron_versions import DRIVER, RUNTIME, Version, Versions, has_device, parse, require_pair
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import parse_record


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.31.7.0\n", (2, 31, 7, 0)), ("2.28.23.0-dd5879008", (2, 28, 23, 0)), ("2.29", (2, 29)), ("1", ()), ("", ())],
)
def test_versions_are_read(text: str, version: Version) -> None:
    assert parse(text) == version


@pytest.mark.parametrize(
    ("driver", "runtime", "works"),
    [
        ("2.28.0", "2.28.23", True),
        ("2.29.0", "2.28.23", False),
        ("2.31.7.0", "2.32.31", False),
        ("2.31.7.0", "2.33.10", True),
        ("2.31.7.0", "2.35.30", True),
        ("2.27.4", "2.35.30", True),
        ("3.0", "2.32", False),
        ("", "2.28.23", True),
        ("2.31.7.0", "", True),
    ],
)
def test_which_pairs_work(driver: str, runtime: str, works: bool) -> None:
    versions = Versions(parse(driver), parse(runtime))
    assert (versions.why_not() == "") is works


def make_pod(root: Path, driver: str, runtime: str) -> None:
    for path in (root / DRIVER, root / RUNTIME, root / "dev" / "neuron0"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / DRIVER).write_text(f"{driver}\n")
    (root / RUNTIME).with_name(f"libnrt.so.{runtime}").touch()
    (root / RUNTIME).symlink_to(f"libnrt.so.{runtime}")
    (root / "dev" / "neuron0").touch()


def test_a_pod_reads_both(tmp_path: Path) -> None:
    assert not has_device(tmp_path)
    assert Versions.read(tmp_path) == Versions((), ())
    make_pod(tmp_path, "2.31.7.0", "2.28.23.0")
    assert has_device(tmp_path)
    assert Versions.read(tmp_path) == Versions((2, 31, 7, 0), (2, 28, 23, 0))
    with pytest.raises(
        ConfigError, match=r"node-7: .*driver 2.31.7.0, .*runtime 2.28.23.0: .*from 2.29 on .*before 2.33"
    ):
        require_pair("node-7", Versions.read(tmp_path))


def test_a_pair_that_cannot_work_ends_the_pod_as_config_before_any_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pod(tmp_path / "root", "2.29.0", "2.28.23.0")
    versions = Versions.read(tmp_path / "root")
    monkeypatch.setattr(pod_main, "has_device", lambda: True)
    monkeypatch.setattr(pod_main.Versions, "read", lambda: versions)
    place = {
        "NODE_RANK": "0",
        "POD_NAME": "p",
        "POD_UID": "u",
        "NODE_NAME": "node-7",
        "MASTER_ADDR": "p",
        "MASTER_PORT": "1",
    }
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    numbers = {"attempt": 1, "nodes": 1, "processes": 2, "threads": 1, "grace-s": 1, "lease-s": 60, "name-wait-s": 1}
    given = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    termination = tmp_path / "termination-log"
    code = pod_main.main(["--directory", str(tmp_path / "train"), "--module", "none", *given], termination)
    record = parse_record(termination.read_text())
    assert record
    assert (code, record.failure_class) == (FailureClass.CONFIG.exit_code, "config")
    assert "nrt_init fails" in record.message
    assert FailureClass.CONFIG.meaning.is_permanent
