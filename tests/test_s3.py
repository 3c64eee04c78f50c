"""Objects in S3 against a real server on this machine, and what is said when it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError, StorageError
from steps.s3 import download, list_objects, split_address
from steps.train.neuron.cache import count_graphs
from tests.shared.s3_server import empty, serving_s3


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_s3() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client; the bucket `data` is there and empty."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    empty(client, "data")
    yield client
    empty(client, "data")
    client.delete_bucket(Bucket="data")


def put(client: Any, **objects: bytes) -> None:
    for key, body in objects.items():
        client.put_object(Bucket="data", Key=key.replace("__", "/"), Body=body)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://b/a/c", ("b", "a/c")),
        ("s3://b", ("b", "")),
        ("s3://b//a", ("b", "a")),
        ("s3://b/a?x#y%20z", ("b", "a?x#y%20z")),
    ],
)
def test_an_address_is_a_bucket_and_a_key(address: str, expected: tuple[str, str]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "b/a", "s3://", "s3:///a", "https://b/a"])
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(DataError, match="expected an address like s3://bucket/prefix, got"):
        split_address(address)


def test_compiled_graphs_in_a_bucket_are_counted_where_they_are_whole(bucket: Any) -> None:
    assert count_graphs("s3://data/graphs") == 0
    for entry, files in {"MODULE_a": ("model.done", "model.neff"), "MODULE_failed": ("model.done",)}.items():
        for name in files:
            bucket.put_object(Bucket="data", Key=f"graphs/neuronxcc-2.21/{entry}/{name}", Body=b"")
    assert count_graphs("s3://data/graphs") == 1


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(bucket: Any) -> None:
    put(bucket, set__b=b"1", set__a=b"22", settings=b"no", set__deep__c=b"3")
    bucket.put_object(Bucket="data", Key="set/empty/", Body=b"")
    assert [item["Key"] for item in list_objects("s3://data/set")] == ["set/a", "set/b", "set/deep/c"]
    assert [item["Size"] for item in list_objects("s3://data/settings")] == [2]
    assert len(list_objects("s3://data")) == 4


def test_objects_come_into_a_folder_and_whole_ones_stay(bucket: Any, tmp_path: Path) -> None:
    put(bucket, set__b=b"1", set__deep__c=b"333")
    paths = download("s3://data/set/", tmp_path / "new")
    assert [(path.relative_to(tmp_path / "new").as_posix(), path.read_bytes()) for path in paths] == [
        ("b", b"1"),
        ("deep/c", b"333"),
    ]
    paths[0].write_bytes(b"x")
    paths[1].write_bytes(b"cu")
    download("s3://data/set", tmp_path / "new", client=bucket)
    assert [path.read_bytes() for path in paths] == [b"x", b"333"]
    assert [path.read_bytes() for path in download("s3://data/set/b", tmp_path / "one")] == [b"1"]


def test_nothing_there_and_a_key_that_leads_out_are_refused(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is stored at s3://data/none: expected an object, or objects below it"):
        list_objects("s3://data/none")
    put(bucket, **{"set__..__..__evil": b"1"})
    with pytest.raises(DataError, match=r"set/\.\./\.\./evil would be written outside of .*rename the object"):
        download("s3://data/set", tmp_path / "in")
    assert not (tmp_path / "evil").exists()


def test_a_bucket_that_is_not_there_is_named_with_the_code(bucket: Any) -> None:
    with pytest.raises(StorageError, match="S3 refused s3://missing/x: NoSuchBucket; check the address, the region"):
        list_objects("s3://missing/x")


def test_a_store_out_of_reach_is_said_without_a_credential(tmp_path: Path) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="AKIAPLANTED",
        aws_secret_access_key="planted-secret",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )
    with pytest.raises(StorageError, match=r"S3 cannot be used for s3://data/x: \w+; check credentials") as caught:
        download("s3://data/x", tmp_path, client=client)
    assert "lanted" not in str(caught.value)
