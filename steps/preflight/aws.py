"""The preflight's questions to AWS, through boto3, which is loaded only here and only when asked. Never raises for an answer.

Called by `run`; what the answers mean is in `cloud`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steps.preflight.question import Answer

if TYPE_CHECKING:
    from steps.preflight.survey import Target

NOT_ASKED = Answer(0, reason="not configured")
CONNECT_S, READ_S = 3, 5
PAGE, MOST_NODES = 100, 2000
"""Instances in one answer, and in all."""


def describe(target: Target, *, client: Callable[..., Any] | None = None) -> Answer:
    """The HyperPod cluster."""
    cluster = target.settings.cluster
    if not cluster.hyperpod_cluster:
        return NOT_ASKED

    def call() -> dict[str, Any]:
        sagemaker = (client or _client)("sagemaker", region=cluster.region)
        return dict(sagemaker.describe_cluster(ClusterName=cluster.hyperpod_cluster))

    return _answered(call)


def list_nodes(target: Target, *, client: Callable[..., Any] | None = None) -> Answer:
    """Its instances, all pages together."""
    cluster = target.settings.cluster
    if not cluster.hyperpod_cluster:
        return NOT_ASKED

    def call() -> dict[str, Any]:
        sagemaker = (client or _client)("sagemaker", region=cluster.region)
        pages = sagemaker.get_paginator("list_cluster_nodes").paginate(
            ClusterName=cluster.hyperpod_cluster, PaginationConfig={"PageSize": PAGE, "MaxItems": MOST_NODES}
        )
        return dict(pages.build_full_result())

    return _answered(call)


def head_bucket(target: Target, *, client: Callable[..., Any] | None = None) -> Answer:
    """The bucket of Metaflow's datastore."""
    datastore = target.datastore
    if not datastore.bucket:
        return NOT_ASKED

    def call() -> dict[str, Any]:
        return dict((client or _client)("s3", endpoint=datastore.endpoint).head_bucket(Bucket=datastore.bucket))

    return _answered(call)


def _client(service: str, *, region: str = "", endpoint: str = "") -> Any:
    from boto3.session import Session
    from botocore.config import Config

    config = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"total_max_attempts": 1})
    # A session of its own: boto3's default one is not safe between threads.
    make: Any = Session().client
    return make(service, region_name=region or None, endpoint_url=endpoint or None, config=config)


def _answered(call: Callable[[], dict[str, Any]]) -> Answer:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return Answer(200, call())
    except ClientError as error:
        said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        return Answer(int(meta.get("HTTPStatusCode", 400)), reason=f"{said.get('Code')}: {said.get('Message', '')}")
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        return Answer(0, reason=f"{type(error).__name__}: {error}")
