"""What is wrong with the places to publish to, as far as it can be known before a training begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from steps.errors import StorageError
from steps.publish.bucket import code_of
from steps.publish.hub import hub_errors
from steps.report.mlflow import server_of
from steps.report.sink import ReportError
from steps.s3 import aws_errors, split_address, store_client
from steps.settings.publish import Publish

TIMEOUT_S = 10.0
"""Of a question at the start."""

Found = Iterator[tuple[str, str]]
"""(setting, what is wrong)."""


def problems(publish: Publish, mlflow: str = "", environment: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Everything found; asks each place a question or two, and changes nothing there. `mlflow`: its address."""
    return [
        *(_in_bucket(publish) if publish.s3 else ()),
        *(_on_hub(publish.hub) if publish.hub else ()),
        *(_in_mlflow(mlflow, environment or {}) if "mlflow" in publish.registries else ()),
        *(_in_sagemaker() if "sagemaker" in publish.registries else ()),
    ]


def _in_bucket(publish: Publish) -> Found:
    bucket, _ = split_address(publish.s3)
    if not has_credentials():
        yield "publish.s3", "there are no AWS credentials where the flow runs: set AWS_PROFILE, keys or a role"
        return
    try:
        with aws_errors(f"s3://{bucket}"):
            store_client(once_s=TIMEOUT_S).head_bucket(Bucket=bucket)
    except StorageError as error:
        code = code_of(error)
        if code in ("404", "NoSuchBucket"):
            yield "publish.s3", f"there is no bucket {bucket}: make it, or correct the name"
        elif not code:  # a refusal says nothing of the right to write
            yield "publish.s3", str(error)


def _on_hub(repository: str) -> Found:
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        yield "publish.hub", "HF_HUB_OFFLINE is set: nothing can be brought to the hub"
        return
    if not get_token():
        yield "publish.hub", "there is no token: set HF_TOKEN to one that may write there, or run `hf auth login`"
        return
    try:
        with hub_errors(repository), contextlib.suppress(RepositoryNotFoundError):  # it will be made
            if not HfApi().model_info(repository, timeout=TIMEOUT_S).private:
                yield "publish.hub", f"{repository} is public: make it private, or name another"
        with hub_errors(repository):
            token = HfApi().whoami().get("auth", {}).get("accessToken", {})
    except StorageError as error:
        yield "publish.hub", str(error)
        return
    if token.get("role") == "read":
        yield "publish.hub", "the token may only read: make one that may write"


def _in_mlflow(address: str, environment: Mapping[str, str]) -> Found:
    if not address:
        yield "reporting.mlflow_uri", "MLflow's registry has no address: give it here, or as MLFLOW_TRACKING_URI"
        return
    try:
        server_of(address, environment).get("registered-models/search", max_results="1")
    except ReportError as error:
        yield "publish.registries", f"MLflow's registry cannot be used: {error}"


def _in_sagemaker() -> Found:
    import boto3

    if not boto3.session.Session().region_name:
        yield "publish.registries", "SageMaker has no region: set AWS_DEFAULT_REGION"


def has_credentials() -> bool:
    """Whether botocore finds AWS credentials."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        return Session().get_credentials() is not None
    except BotoCoreError:
        return False
