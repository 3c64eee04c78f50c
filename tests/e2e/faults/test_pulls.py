"""An image that cannot be pulled, in each way that a registry has to say so: for a minute, and for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.cluster_parts import required
from tests.e2e.faults.conftest import Expect, MakeTrial
from tests.e2e.faults.fault_harness import IMAGE, Trial, eventually
from tests.e2e.faults.registry import lay_out

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

PORT = 5999
CLUSTER_DNS = os.environ.get("LORA_E2E_HOST", "10.99.0.1")
AWAY_S = 60.0
SAID = {
    "unauthorized": "401 Unauthorized",
    "forbidden": "403 Forbidden",
    "credentials": "no basic auth credentials|401 Unauthorized",  # in the words of containerd 1.7, and of 1.6
    "layer": "403 Forbidden",
    "digest": "not found",
    "host": "no such host",
}
FAULT = {
    "unauthorized": "the registry says 401 for a minute",
    "forbidden": "the registry says 403 for a minute",
    "credentials": "the registry asks for credentials (no basic auth) for a minute",
    "layer": "a layer's address has expired (403) for a minute",
    "digest": "the image's digest is not found for a minute",
    "host": "the registry's name is unknown (no such host) for a minute",
}
UNKNOWN_HOST = "registry.cluster.local"
RESOLVER = "/etc/resolv.conf"


@pytest.fixture
def registry(shared: Path) -> Iterator[tuple[Path, str]]:
    """(its folder, the digest of its image); it listens on every node, which ask the cluster's DNS for names."""
    kubelets = required("kubelet")
    folder = shared / "registry"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    digest = lay_out(IMAGE, folder)
    program = [sys.executable, str(Path(__file__).with_name("registry.py")), str(folder), str(PORT)]
    log = (folder / "log").open("wb")
    servers = [
        subprocess.Popen(["nsenter", "-t", str(item.pid), "-n", *program], stdout=log, stderr=log) for item in kubelets
    ]
    (folder / "resolv.conf").write_text(f"nameserver {CLUSTER_DNS}\n")
    # -p as well: mount asks /proc, which is that of the node.
    enter = [["nsenter", "-t", str(item.pid), "-m", "-p"] for item in kubelets]
    for one in enter:
        subprocess.run([*one, "mount", "--bind", str(folder / "resolv.conf"), RESOLVER], check=True)
    yield folder, digest
    for one in enter:
        subprocess.run([*one, "umount", RESOLVER], check=True)
    containerds(" ".join(["rm", *(image_of(fault, digest) for fault in SAID)]))
    for server in servers:
        server.kill()
        server.wait()
    log.close()
    shutil.rmtree(folder)


def image_of(fault: str, digest: str) -> str:
    """A name that no node has an image of from an earlier run."""
    place = UNKNOWN_HOST if fault == "host" else f"localhost:{PORT}/{fault}"
    return f"{place}/image" + (f"@{digest}" if fault == "digest" else f":{digest[-8:]}")


def started(trial: MakeTrial, fault: str, digest: str, **settings: Any) -> Trial:
    cluster = {"image": image_of(fault, digest)}
    made = trial(f"pull-{fault}", nodes=1, steps=6, settings={"cluster": cluster, **settings})
    made.start()
    return made


def containerds(word: str) -> None:
    """`ctr images …` on each node."""
    for item in required("containerd", "containerd.toml"):
        config = item.cmdline()[item.cmdline().index("-c") + 1]
        socket = Path(config).with_name("containerd.sock")
        command = ["ctr", "-a", str(socket), "-n", "k8s.io", "images", *word.split()]
        subprocess.run(command, check="rm" not in command, capture_output=True)  # each image is on one node


def test_a_pull_that_fails_for_a_minute_costs_no_attempt(
    trial: MakeTrial, expect: Expect, registry: tuple[Path, str]
) -> None:
    """All kinds at once: they share neither pod nor repository."""
    folder, digest = registry
    running = {fault: started(trial, fault, digest) for fault in SAID}
    for training in running.values():
        training.supervisors[0].when_said("does not start")
    time.sleep(AWAY_S)
    for training in running.values():
        assert training.supervisors[0].process.poll() is None, training.supervisors[0].said()
    (folder / "mended").touch()
    containerds(f"tag --force {IMAGE} {image_of('host', digest)}")
    for fault, training in running.items():
        reads = rf"does not start \((ErrImagePull|ImagePullBackOff).*({SAID[fault]})"
        ended = expect(FAULT[fault], training, classes=[], reads=reads)
        assert ended["attempts"] == 1


def test_a_pull_that_fails_for_ever_is_the_images_fault_at_the_startup_deadline(
    trial: MakeTrial, expect: Expect, registry: tuple[Path, str]
) -> None:
    training = started(trial, "never", registry[1], deadlines={"startup_s": 30})
    eventually("it is told", lambda: any("does not start" in line for line in training.supervisors[0].said()))
    expect(
        "the registry says 403 for ever",
        training,
        classes=["image"],
        error="JobPermanentError",
        reads="attempt 1 failed, image: .*403 Forbidden",
    )
