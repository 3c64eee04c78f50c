"""Small real models for the base room: a folder that is whole, an S3 that answers, a hub that answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.base.sources.random import write_tiny
from tests.base.fake_hub import SMALL, FakeHub


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A whole model folder."""
    folder = tmp_path / "my-model"
    write_tiny(folder, SMALL)
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto's S3 with the bucket `models`; boto3's own environment points to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    boto3.client("s3").create_bucket(Bucket="models")
    yield "models"
    server.stop()


@pytest.fixture
def hub(model_folder: Path) -> Iterator[FakeHub]:
    """A hub that has `someone/small`."""
    server = FakeHub(model_folder)
    yield server
    server.close()
