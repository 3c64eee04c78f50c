"""Objects in S3, brought to a local folder with boto3; its client and its errors.

Used by `base` (models), `prepare` (data) and `publish`. Credentials, region and endpoint come from where boto3 looks for them
(environment, profile, pod identity; AWS_ENDPOINT_URL_S3 for another store); none is ever written or printed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import DataError, StorageError
from steps.protocol.rundir import storage_errors


def split_address(address: str) -> tuple[str, str]:
    """(bucket, key or prefix) of an s3:// address.

    Raises:
        DataError: not an s3:// address with a bucket.
    """
    scheme, _, rest = address.partition("://")  # no URL parser: a key may hold ?, # and %
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"expected an address like s3://bucket/prefix, got {address!r}")
    return bucket, key.lstrip("/")


def list_objects(address: str, *, client: Any = None) -> list[dict[str, Any]]:
    """Key, Size and ETag of the object at `address`, or of all objects below it, sorted by key.

    Raises:
        StorageError: the store refused or cannot be reached.
        DataError: nothing is there.
    """
    bucket, prefix = split_address(address)
    store = client or store_client()
    with aws_errors(address):
        pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [item for page in pages for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
    below = prefix.rstrip("/") + "/" if prefix else ""
    inside = [item for item in found if item["Key"] == prefix or item["Key"].startswith(below)]
    if not inside:
        raise DataError(f"nothing is stored at {address}: expected an object, or objects below it")
    return sorted(inside, key=lambda item: str(item["Key"]))


def download(address: str, folder: Path, *, client: Any = None) -> list[Path]:
    """Bring the object at `address`, or all below it, into `folder`; what is there with the right size stays.

    Raises:
        StorageError: the store refused, cannot be reached, or the disk is full.
        DataError: nothing is there, or a key leads out of `folder`.
    """
    bucket, prefix = split_address(address)
    store = client or store_client()
    paths = []
    for item in list_objects(address, client=store):
        key = str(item["Key"])
        name = key[len(prefix) :].lstrip("/") if key != prefix else Path(key).name
        target = folder / name
        if ".." in Path(name).parts:
            raise DataError(f"s3://{bucket}/{key} would be written outside of {folder}: rename the object")
        if not (target.is_file() and target.stat().st_size == item["Size"]):
            beside = target.with_name(f".{target.name}.part")
            with aws_errors(f"s3://{bucket}/{key}"), storage_errors(f"writing {target}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                store.download_file(bucket, key, str(beside))
                beside.rename(target)
        paths.append(target)
    return paths


def store_client(*, once_s: float = 0) -> Any:
    """boto3's client, with its own retries; with `once_s` it asks once, and waits so many seconds for an answer."""
    import boto3
    from botocore.config import Config

    quick = Config(connect_timeout=once_s, read_timeout=once_s, retries={"total_max_attempts": 1})
    return boto3.client("s3", config=quick if once_s else None)


@contextlib.contextmanager
def aws_errors(address: str, service: str = "S3") -> Iterator[None]:
    """Turn botocore's exceptions into StorageError; only the error's code passes, never a request or its headers."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError) as error:
        refusal = error if isinstance(error, ClientError) else error.__context__  # boto3's own errors of a transfer
        if isinstance(refusal, ClientError):
            code = refusal.response.get("Error", {}).get("Code", "unknown")
            raise StorageError(
                f"{service} refused {address}: {code}; check the address, the region and this user's permissions"
            ) from refusal
        raise StorageError(
            f"{service} cannot be used for {address}: {type(error).__name__}; check credentials, region and network"
        ) from error
