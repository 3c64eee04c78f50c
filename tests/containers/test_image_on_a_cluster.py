"""The CPU image without packages, in a real pod: user 1000, the packages mounted, all that Metaflow's pods call is there.

Needs kubectl, KUBECONFIG, and HYPERPOD_LORA_TEST_IMAGE: the name of that image on nodes which see this machine's files. Where a
builder takes no arguments, `dockerfile.with_mounted_packages` makes the Dockerfile for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IMAGE = os.environ.get("HYPERPOD_LORA_TEST_IMAGE", "")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not IMAGE or "KUBECONFIG" not in os.environ, reason="KUBECONFIG or HYPERPOD_LORA_TEST_IMAGE is not set"
    ),
]
SCRIPT = """
set -e
echo user "$(id -u)" "$(id -un)" "$HOME" "$PWD"
touch here
for program in bash python tar killall5; do command -v "$program"; done
python -c 'import boto3, kubernetes, metaflow, requests, torch; print("sum", torch.ones(3).sum().item())'
! touch "$VIRTUAL_ENV/x" 2>/dev/null
echo skip "$METAFLOW_SKIP_INSTALL_DEPENDENCIES"
"""


def kubectl(*words: str, manifest: str = "") -> str:
    done = subprocess.run(["kubectl", *words], input=manifest, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


def mounted() -> list[str]:
    """The virtual environment and its interpreter's installation: at the same paths, or links lead nowhere."""
    return [sys.prefix, str(Path(sys.executable).resolve().parents[1])]


def pod(namespace: str) -> dict[str, Any]:
    folders = mounted()
    path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    container = {
        "name": "pytorch",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["bash", "-c", SCRIPT],
        "env": [{"name": "PATH", "value": path}, {"name": "VIRTUAL_ENV", "value": sys.prefix}],
        "volumeMounts": [{"name": f"v{n}", "mountPath": at, "readOnly": True} for n, at in enumerate(folders)],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True},
        "containers": [container],
        "volumes": [{"name": f"v{n}", "hostPath": {"path": at, "type": "Directory"}} for n, at in enumerate(folders)],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "image", "namespace": namespace}, "spec": spec}


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"trial-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.timeout(300)
def test_a_pod_of_user_1000_has_all_it_needs_from_the_image_and_the_mounted_packages(namespace: str) -> None:
    kubectl("apply", "-f", "-", manifest=json.dumps(pod(namespace)))
    try:
        kubectl("-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s", "pod/image")
    finally:
        said = kubectl("-n", namespace, "logs", "image", "--ignore-errors")
        print(said)
    assert "user 1000 lora /home/lora /home/lora" in said
    assert "sum 3.0" in said
    assert said.endswith("skip 1\n")
