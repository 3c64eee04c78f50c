"""A bucket on a server of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(store: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment in which boto3 speaks to that server."""
    environment = {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "plantedSecretAccessKey+/0123456789",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def bucket(aws: dict[str, str]) -> Iterator[Any]:
    """A client; the bucket `team` is there and empty."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="team")
    empty(client)
    yield client
    empty(client)
    client.delete_bucket(Bucket="team")


def empty(client: Any) -> None:
    for item in client.list_objects_v2(Bucket="team").get("Contents", ()):
        client.delete_object(Bucket="team", Key=item["Key"])
