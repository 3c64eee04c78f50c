"""A namespace, an image, a shared folder and object storage for the tests that need a cluster (marker `cluster`).

Each test module says `pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]`: a cluster takes more than the usual time.
"""

from __future__ import annotations

import base64
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import cluster_harness as harness
from tests.e2e.cluster_harness import Mount, Place, Site
from tests.e2e.turns import held

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-west-2",
}
BUCKET = "lora-e2e"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of pytest-timeout's clock
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait for a test's turn: marked `alone`, it has the cluster for itself, marked `devices` all accelerators."""
    with ExitStack() as stack:
        if item.get_closest_marker("cluster"):
            folder = Path(os.environ.get("LORA_E2E_SHARED") or tempfile.gettempdir())
            if item.get_closest_marker("devices"):
                stack.enter_context(held(folder / ".devices.lock", alone=True))
            stack.enter_context(held(folder / ".e2e.lock", alone=item.get_closest_marker("alone") is not None))
        return (yield)


@pytest.fixture(scope="session")
def object_store() -> Iterator[dict[str, str]]:
    """An S3 server of this process that pods reach, with one bucket: the environment of whoever uses it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request would bury a failure's words
    server = ThreadedMotoServer(ip_address=os.environ.get("LORA_E2E_HOST", "10.99.0.1"), port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": CREDENTIALS["AWS_DEFAULT_REGION"]}
    )
    yield {
        **CREDENTIALS,
        "METAFLOW_S3_ENDPOINT_URL": url,
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/metaflow",
        "METAFLOW_DATATOOLS_S3ROOT": f"s3://{BUCKET}/data",
        "METAFLOW_DEFAULT_DATASTORE": "s3",
    }
    server.stop()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pods' image: given, or built from the shipped Dockerfile with its packages left to a mounted environment."""
    given = os.environ.get("LORA_E2E_IMAGE", "")
    if not harness.builds_image():
        if not given:
            pytest.skip(
                "neither LORA_E2E_IMAGE nor LORA_E2E_TOOL is set: tests/e2e/cluster_harness.py says what they are"
            )
        return given
    dockerfile = tmp_path_factory.mktemp("image") / "Dockerfile"
    dockerfile.write_text(harness.mounted_dockerfile(harness.host_mounts()[0].path))
    harness.tool("image", harness.OWN_IMAGE, str(dockerfile), str(harness.PROJECT))
    return harness.OWN_IMAGE


@pytest.fixture(scope="session")
def site(image: str, object_store: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The session's namespace; what was made for it is removed at the end."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: these tests need a cluster with the Training Operator")
    shared = Path(os.environ.get("LORA_E2E_SHARED") or tmp_path_factory.mktemp("shared"))
    claim = os.environ.get("LORA_E2E_CLAIM", harness.CLAIM)
    given = os.environ.get("LORA_E2E_NAMESPACE", "")
    namespace = given or f"hyperpod-ns-e2e-{uuid.uuid4().hex[:6]}"
    mounts = harness.host_mounts()
    try:
        if not given:
            shared.chmod(0o777)
            _make_namespace(namespace, claim, shared, mounts)
        _keep_credentials(namespace)
        yield Site(namespace, image, shared, claim, mounts, object_store)
    finally:
        if not given:
            chosen = f"--selector={harness.LABEL}={namespace}"
            harness.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
            harness.kubectl("delete", "persistentvolume,clusterrole,clusterrolebinding", chosen, "--wait=false")


def _make_namespace(namespace: str, claim: str, shared: Path, mounts: tuple[Mount, ...]) -> None:
    harness.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    for one, folder in ((claim, shared), *((mount.claim, mount.path) for mount in mounts)):
        harness.apply(*harness.folder_volume(namespace, one, folder))
    for name in ("rbac.yaml", "rbac-metaflow.yaml"):
        harness.apply(*harness.shipped(name, namespace))


def _keep_credentials(namespace: str) -> None:
    """The object storage's credentials as a Secret: the steps' pods get them from it."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in CREDENTIALS.items()}
    metadata = {"name": harness.BUCKET_SECRET, "namespace": namespace}
    harness.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


@pytest.fixture
def place(site: Site, tmp_path: Path, make_environment: Callable[[Path], dict[str, str]]) -> Iterator[Place]:
    """A folder of this machine for one test, with the Config written; the jobs that the test left are removed."""
    (tmp_path / ".metaflow").mkdir()
    environment = make_environment(tmp_path)
    environment |= {**site.store, "METAFLOW_KUBERNETES_NAMESPACE": site.namespace}
    made = Place(site, tmp_path, environment)
    made.write_config()
    before = {job["metadata"]["name"] for job in site.jobs()}
    yield made
    for job in site.jobs():
        if job["metadata"]["name"] not in before:
            name = job["metadata"]["name"]  # its launcher may remove it at the same moment
            site.kubectl("delete", "pytorchjobs.kubeflow.org", name, "--wait=false", "--ignore-not-found")
