"""The options reach every command of Metaflow: `--help`, `run`, `argo-workflows create`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from steps.settings.options import OPTIONS, help_of
from tests.flow.flow_harness import Place
from tests.shared.s3_server import serving_s3

NAMES = [name.replace("_", "-") for name in OPTIONS]


def test_run_explains_every_option(place: Place) -> None:
    told = place.call(place.command("run", "--help")).stdout
    assert [name for name in NAMES if f"--{name}" not in told] == []
    assert " ".join(help_of("lora_alpha").split()) in " ".join(told.split())


@pytest.fixture
def s3() -> Iterator[str]:
    """Moto's S3 with the bucket `flows`: Argo's templates name a datastore that pods reach."""
    import boto3

    secret = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    with serving_s3() as endpoint:
        boto3.client("s3", endpoint_url=endpoint, **secret).create_bucket(Bucket="flows")
        yield endpoint


def test_an_argo_workflow_has_every_option_as_a_parameter(place: Place, s3: str) -> None:
    cluster = {"namespace": "ns", "image": "r.io/lora:1", "mount_path": str(place.folder)}
    place.write_config(launcher={"kind": "pytorchjob"}, cluster=cluster)
    place.environment.update(
        METAFLOW_DEFAULT_DATASTORE="s3",
        METAFLOW_DATASTORE_SYSROOT_S3="s3://flows/metaflow",
        METAFLOW_S3_ENDPOINT_URL=s3,
        METAFLOW_KUBERNETES_NAMESPACE="ns",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    words = place.command("--config", "config", str(place.config), "argo-workflows", "create", "--only-json")
    done = place.call(words)
    assert done.returncode == 0, done.stdout + done.stderr
    template = json.loads(done.stdout[done.stdout.index("{") :])
    parameters = {item["name"]: item["value"] for item in template["spec"]["arguments"]["parameters"]}
    assert set(NAMES) <= set(parameters)
    assert json.loads(parameters["seed"]) == 42
