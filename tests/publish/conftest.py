"""A bucket on a server of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.shared.s3_server import empty, serving_s3


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with serving_s3() as address:
        yield address


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
    empty(client, "team")
    yield client
    empty(client, "team")
    client.delete_bucket(Bucket="team")
