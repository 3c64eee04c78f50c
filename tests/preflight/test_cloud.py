"""AWS: what SageMaker and S3 answer, by botocore's own stubs and real client errors, and what is made of it."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from botocore.stub import Stubber

from steps.preflight import aws, cloud, storage, survey
from steps.preflight.cloud import Datastore
from steps.preflight.finding import Finding
from steps.preflight.question import Answer
from steps.preflight.storage import Mount
from tests.preflight import preflight_answers as good

NAME = "research"
IN_SERVICE = {"ClusterStatus": "InService", "NodeRecovery": "Automatic"}
Given = dict[str, Any]


@functools.cache
def client(service: str) -> Any:
    return boto3.session.Session().client(
        service, region_name="us-west-2", aws_access_key_id="x", aws_secret_access_key="x"
    )


def stubbed(service: str) -> tuple[Any, Stubber]:
    return client(service), Stubber(client(service))


def described(**changed: Any) -> Given:
    now = datetime.datetime(2026, 1, 1)
    arn = "arn:aws:sagemaker:us-west-2:444455556666:cluster/abc123"
    return {"ClusterArn": arn, "CreationTime": now, "InstanceGroups": [], **IN_SERVICE, **changed}


def instance(name: str, status: str = "Running", *, kind: str = "ml.trn1.32xlarge", message: str = "") -> Given:
    state = {"Status": status, **({"Message": message} if message else {})}
    now = datetime.datetime(2026, 1, 1)
    return {
        "InstanceGroupName": "trainium",
        "InstanceId": name,
        "InstanceType": kind,
        "LaunchTime": now,
        "InstanceStatus": state,
    }


TWO = [instance("i-0000000000000001"), instance("i-0000000000000002")]


def judge(cluster: Given | None = None, nodes: list[Given] | None = None, **settings: Any) -> list[Finding]:
    """Through the real client and botocore's stub of the service."""
    aim = good.target(hyperpod_cluster=NAME, **settings)
    sagemaker, stub = stubbed("sagemaker")
    stub.add_response("describe_cluster", described(**(cluster or {})), {"ClusterName": NAME})
    listed = {"ClusterNodeSummaries": TWO if nodes is None else nodes}
    stub.add_response("list_cluster_nodes", listed, {"ClusterName": NAME, "MaxResults": 100})
    with stub:
        answers = [ask(aim, client=lambda *given, **named: sagemaker) for ask in (aws.describe, aws.list_nodes)]
    stub.assert_no_pending_responses()
    return cloud.judge_cluster(aim.settings.cluster, *answers)


def test_a_cluster_in_service_with_its_nodes_running_is_in_order() -> None:
    assert {item.severity for item in judge()} == {"ok"}


@pytest.mark.parametrize(
    ("cluster", "nodes", "settings", "severity", "words"),
    [
        (
            {"ClusterStatus": "Failed", "FailureMessage": "no capacity"},
            None,
            {},
            "error",
            "is Failed, not InService: no capacity",
        ),
        ({"ClusterStatus": "Deleting"}, None, {}, "error", "is Deleting"),
        ({"ClusterStatus": "SystemUpdating"}, None, {}, "warning", "nodes may come and go"),
        ({"NodeRecovery": "None"}, None, {}, "warning", "NodeRecovery is None"),
        (
            *({"NodeRecovery": "None"}, None, {"recovery": "hyperpod", "namespace": good.SPACE}),
            *("error", "recovery: hyperpod waits for it"),
        ),
        (
            *(None, [TWO[0], instance("i-0000000000000002", "Failure", message="EFA")], {}),
            *("warning", "i-0000000000000002 Failure (EFA)"),
        ),
        (None, [TWO[0]], {}, "warning", "1 Running; 2 needed"),
        (
            None,
            [*TWO[:1], instance("i-0000000000000003", kind="ml.m5.xlarge")],
            {},
            "warning",
            "ml.trn1.32xlarge: 1 Running",
        ),
        (None, [], {}, "warning", "none; 2 needed"),
    ],
    ids=["failed", "deleting", "updating", "no recovery", "no recovery at all", "failure", "too few", "others", "none"],
)
def test_the_state_of_the_hyperpod_cluster(
    cluster: Given | None, nodes: list[Given] | None, settings: Given, severity: str, words: str
) -> None:
    found = [item for item in judge(cluster, nodes, **settings) if item.severity != "ok"]
    assert [item.severity for item in found] == [severity]
    assert words in found[0].message
    assert found[0].fix


def test_all_pages_of_instances_are_read() -> None:
    aim = good.target(hyperpod_cluster=NAME)
    sagemaker, stub = stubbed("sagemaker")
    first = {"ClusterName": NAME, "MaxResults": 100}
    stub.add_response("list_cluster_nodes", {"ClusterNodeSummaries": TWO[:1], "NextToken": "more"}, first)
    stub.add_response("list_cluster_nodes", {"ClusterNodeSummaries": TWO[1:]}, {**first, "NextToken": "more"})
    with stub:
        answer = aws.list_nodes(aim, client=lambda *given, **named: sagemaker)
    assert [item["InstanceId"] for item in answer.body["ClusterNodeSummaries"]] == [item["InstanceId"] for item in TWO]


@pytest.mark.parametrize(
    ("code", "status", "severity", "words", "fix"),
    [
        ("ResourceNotFound", 400, "error", "there is no HyperPod cluster research", "cluster.hyperpod_cluster"),
        ("AccessDeniedException", 400, "warning", "AccessDeniedException: no", "allow sagemaker:DescribeCluster"),
        ("ThrottlingException", 400, "warning", "ThrottlingException", "region and credentials"),
    ],
)
def test_what_sagemaker_refuses(code: str, status: int, severity: str, words: str, fix: str) -> None:
    aim = good.target(hyperpod_cluster=NAME)
    sagemaker, stub = stubbed("sagemaker")
    stub.add_client_error("describe_cluster", code, "no", status)
    with stub:
        answer = aws.describe(aim, client=lambda *given, **named: sagemaker)
    (found,) = cloud.judge_cluster(aim.settings.cluster, answer, Answer(200, {}))
    assert (found.severity, words in found.message, fix in found.fix) == (severity, True, True)


def test_instances_that_may_not_be_listed_are_a_warning() -> None:
    aim = good.target(hyperpod_cluster=NAME)
    found = cloud.judge_cluster(aim.settings.cluster, Answer(200, IN_SERVICE), Answer(400, reason="AccessDenied: no"))
    assert [item.severity for item in found] == ["ok", "ok", "warning"]


def failing(error: Exception) -> Callable[..., Any]:
    def make(*given: Any, **named: Any) -> Any:
        raise error

    return make


@pytest.mark.parametrize("ask", [aws.describe, aws.list_nodes, aws.head_bucket])
@pytest.mark.parametrize(
    "error", [NoCredentialsError(), EndpointConnectionError(endpoint_url="http://x"), ValueError("Invalid endpoint: x")]
)
def test_no_credentials_and_no_network_are_answers_and_no_crash(ask: Callable[..., Answer], error: Exception) -> None:
    answer = ask(good.target(hyperpod_cluster=NAME), client=failing(error))
    assert (answer.status, type(error).__name__ in answer.reason) == (0, True)


def test_nothing_of_aws_is_asked_where_nothing_is_configured() -> None:
    aim = survey.Target(good.settings())
    never = failing(AssertionError("asked"))
    assert {ask(aim, client=never).reason for ask in (aws.describe, aws.list_nodes, aws.head_bucket)} == {
        "not configured"
    }
    assert cloud.judge_cluster(aim.settings.cluster, aws.NOT_ASKED, aws.NOT_ASKED) == []


S3 = Datastore("s3", "s3://bucket/prefix", "http://10.0.0.1:5555")


@pytest.mark.parametrize(
    ("datastore", "status", "steps", "severity", "words"),
    [
        (S3, 200, True, "ok", "s3://bucket/prefix at http://10.0.0.1:5555 can be reached"),
        (S3, 404, True, "error", "there is no bucket bucket"),
        (S3, 403, True, "error", "cannot be reached from here: 403: Forbidden"),
        (S3, 301, True, "error", "in another region"),
        (Datastore("s3", ""), 200, True, "error", "names no bucket"),
        (Datastore("azure", "c/p"), 0, True, "ok", "not tested here"),
        (Datastore(), 0, True, "error", "which the steps' pods cannot reach"),
        (Datastore(), 0, False, "ok", "the steps run here"),
    ],
    ids=["there", "missing", "forbidden", "region", "no bucket", "azure", "local, pods", "local, here"],
)
def test_the_datastore(datastore: Datastore, status: int, steps: bool, severity: str, words: str) -> None:
    cluster = good.settings(steps={"enabled": steps}).cluster
    (found,) = cloud.judge_datastore(cluster, datastore, Answer(status, reason="403: Forbidden"))
    assert (found.severity, words in found.message) == (severity, True), found


@pytest.mark.parametrize(("code", "status"), [("404", 404), ("403", 403)])
def test_a_buckets_refusal_is_read_from_the_real_client(code: str, status: int) -> None:
    s3, stub = stubbed("s3")
    stub.add_client_error("head_bucket", code, "no", status, expected_params={"Bucket": "b"})
    with stub:
        assert aws.head_bucket(good.target(), client=lambda *given, **named: s3).status == status


@pytest.mark.parametrize(
    ("mount", "severity", "words"),
    [
        (Mount(True, True, "/fsx/runs", True), "ok", "/fsx/runs can be written"),
        (Mount(False, False, "/", True), "error", "/fsx is not mounted here"),
        (Mount(True, False, "/fsx", True), "error", "/fsx cannot be written by user 1000"),
    ],
    ids=["mounted", "not mounted", "read-only"],
)
def test_the_mount_where_the_training_is_watched_over(mount: Mount, severity: str, words: str) -> None:
    (found,) = storage.judge_mount(good.settings().cluster, mount)
    assert (found.severity, words in found.message) == (severity, True)


def test_a_laptop_that_only_launches_needs_no_mount() -> None:
    assert storage.judge_mount(good.settings().cluster, Mount(False, False, "/", False)) == []
