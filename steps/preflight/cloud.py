"""The AWS side: the HyperPod cluster's state and its instances, and Metaflow's datastore. Pure: answers in, findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from steps.preflight.finding import Finding, error, ok, warning
from steps.preflight.question import Answer
from steps.settings.cluster import Cluster
from steps.settings.instances import find_instance

ALLOW = "allow sagemaker:DescribeCluster and sagemaker:ListClusterNodes"
COMING_AND_GOING = frozenset({"Updating", "SystemUpdating", "RollingBack", "Creating"})
REMOTE = ("s3", "azure", "gs")
"""Datastores that pods can reach."""


@dataclass(frozen=True, slots=True)
class Datastore:
    """Where Metaflow keeps artifacts and code."""

    kind: str = "local"
    root: str = ""
    """`s3://bucket/prefix`."""
    endpoint: str = ""
    """Address of an S3 that is not AWS's."""

    @property
    def bucket(self) -> str:
        """Bucket of an S3 datastore; empty for another."""
        return self.root.removeprefix("s3://").partition("/")[0] if self.kind == "s3" else ""


LOCAL = Datastore()


def judge_cluster(cluster: Cluster, described: Answer, nodes: Answer) -> list[Finding]:
    """The HyperPod cluster is in service, mends its nodes, and has enough of them running."""
    name = cluster.hyperpod_cluster
    if not name:
        return []
    if not described.is_ok:
        return [_unreachable(name, described)]
    return [*_state(name, described.body), *_recovery(cluster, described.body), *_instances(cluster, nodes)]


def _unreachable(name: str, answer: Answer) -> Finding:
    if "ResourceNotFound" in answer.reason:
        fix = "correct cluster.hyperpod_cluster or cluster.region: aws sagemaker list-clusters"
        return error("hyperpod", f"there is no HyperPod cluster {name}: {answer.message}", fix)
    fix = (
        ALLOW
        if answer.is_forbidden or "AccessDenied" in answer.reason
        else f"look at region and credentials, or {ALLOW}"
    )
    return warning("hyperpod", f"the state of {name} is not known: {answer.message}", fix)


def _state(name: str, body: Mapping[str, Any]) -> list[Finding]:
    status = str(body.get("ClusterStatus"))
    if status == "InService":
        return [ok("hyperpod", f"{name} is InService")]
    why = f": {body['FailureMessage']}" if body.get("FailureMessage") else ""
    look = f"aws sagemaker describe-cluster --cluster-name {name}"
    if status in COMING_AND_GOING:
        return [warning("hyperpod", f"{name} is {status}{why}; nodes may come and go", f"{look}; wait if you can")]
    return [error("hyperpod", f"{name} is {status}, not InService{why}", look)]


def _recovery(cluster: Cluster, body: Mapping[str, Any]) -> list[Finding]:
    recovery = body.get("NodeRecovery", "not told")
    if recovery == "Automatic":
        return [ok("hyperpod", "broken nodes are replaced by themselves (NodeRecovery Automatic)")]
    fix = f"aws sagemaker update-cluster --cluster-name {cluster.hyperpod_cluster} --node-recovery Automatic …"
    what = f"NodeRecovery is {recovery}: a broken node stays broken"
    if cluster.recovery == "hyperpod":
        return [error("hyperpod", f"{what}, and recovery: hyperpod waits for it", fix)]
    return [warning("hyperpod", f"{what} until someone replaces it", fix)]


def _instances(cluster: Cluster, nodes: Answer) -> list[Finding]:
    if not nodes.is_ok:
        return [warning("hyperpod", f"the instances' state is not known: {nodes.message}", ALLOW)]
    instance = find_instance(cluster.instance_type)
    kind = instance.label if instance else ""
    ours: Sequence[Mapping[str, Any]] = [
        item for item in nodes.body.get("ClusterNodeSummaries") or () if kind in ("", item.get("InstanceType"))
    ]
    states = Counter(str((item.get("InstanceStatus") or {}).get("Status")) for item in ours)
    words = ", ".join(f"{number} {state}" for state, number in states.most_common()) or "none"
    what = f"instances{f' of {kind}' if kind else ''}: {words}"
    if states["Running"] >= cluster.nodes and len(states) == 1:
        return [ok("hyperpod", what)]
    sick = [item for item in ours if (item.get("InstanceStatus") or {}).get("Status") != "Running"]
    listed = "; ".join(_sick(item) for item in sick[:4])
    fix = "a Failure is not repaired by itself: aws sagemaker batch-replace-cluster-nodes; the rest comes back"
    return [warning("hyperpod", f"{what}; {cluster.nodes} needed{f': {listed}' if listed else ''}", fix)]


def _sick(item: Mapping[str, Any]) -> str:
    status = item.get("InstanceStatus") or {}
    return f"{item.get('InstanceId')} {status.get('Status')}{' (' + status['Message'] + ')' if status.get('Message') else ''}"


def judge_datastore(cluster: Cluster, datastore: Datastore, answer: Answer) -> list[Finding]:
    """Pods reach the datastore; a local one will do only where the steps run here."""
    if datastore.kind not in REMOTE:
        if not cluster.steps.enabled:
            return [ok("datastore", f"{datastore.kind}; the steps run here, the code goes over {cluster.mount_path}")]
        fix = "set METAFLOW_DEFAULT_DATASTORE=s3 and METAFLOW_DATASTORE_SYSROOT_S3, or cluster.steps.enabled to false"
        return [
            error("datastore", f"Metaflow's datastore is {datastore.kind}, which the steps' pods cannot reach", fix)
        ]
    if datastore.kind != "s3":
        return [ok("datastore", f"{datastore.kind} {datastore.root}; not tested here")]
    if not datastore.bucket:
        what = "Metaflow's datastore is s3, but METAFLOW_DATASTORE_SYSROOT_S3 names no bucket"
        return [error("datastore", what, "set it to s3://bucket/prefix")]
    return [_bucket(datastore, answer)]


def _bucket(datastore: Datastore, answer: Answer) -> Finding:
    where = f"{datastore.root}{f' at {datastore.endpoint}' if datastore.endpoint else ''}"
    if answer.is_ok:
        return ok("datastore", f"{where} can be reached from here")
    if answer.is_missing:
        return error("datastore", f"there is no bucket {datastore.bucket} ({where})", "make it, or correct the root")
    if answer.status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.TEMPORARY_REDIRECT):
        return error("datastore", f"the bucket of {where} is in another region", "set AWS_DEFAULT_REGION to its region")
    fix = "give this account s3:ListBucket, GetObject and PutObject on it; look at credentials and endpoint"
    return error("datastore", f"{where} cannot be reached from here: {answer.message}", fix)
