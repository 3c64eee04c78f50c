"""What is wrong with the places to publish to, as far as it can be known before a training begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steps.errors import StorageError
from steps.publish.bucket import code_of
from steps.s3 import aws_errors, split_address
from steps.settings.publish import Publish

TIMEOUT_S = 10.0
"""Of a question at the start."""

Found = Iterator[tuple[str, str]]
"""(setting, what is wrong)."""


def problems(publish: Publish) -> list[tuple[str, str]]:
    """Everything found; asks each place one question, and changes nothing there."""
    return list(_in_bucket(publish)) if publish.s3 else []


def _in_bucket(publish: Publish) -> Found:
    bucket, _ = split_address(publish.s3)
    if not has_credentials():
        yield "publish.s3", "there are no AWS credentials where the flow runs: set AWS_PROFILE, keys or a role"
        return
    try:
        with aws_errors(f"s3://{bucket}"):
            _quick_client().head_bucket(Bucket=bucket)
    except StorageError as error:
        code = code_of(error)
        if code in ("404", "NoSuchBucket"):
            yield "publish.s3", f"there is no bucket {bucket}: make it, or correct the name"
        elif not code:  # a refusal says nothing of the right to write
            yield "publish.s3", str(error)


def has_credentials() -> bool:
    """Whether botocore finds AWS credentials."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        return Session().get_credentials() is not None
    except BotoCoreError:
        return False


def _quick_client() -> Any:
    import boto3
    from botocore.config import Config

    quick = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1})
    return boto3.client("s3", config=quick)
