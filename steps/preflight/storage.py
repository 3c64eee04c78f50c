"""The volume claims, the mount path, and whatever else the pods name: secrets, config maps, service accounts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from steps.preflight.finding import Finding, error, note, ok, warning
from steps.preflight.question import Answer, Question, unread
from steps.pytorchjob.pod_template import TOKEN_KEY
from steps.settings.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Named:
    """Something in the namespace that the pods refer to, and the setting that names it."""

    kind: str
    """The kind as kubectl calls it: `secret`, `configmap`, `serviceaccount`."""
    name: str
    setting: str
    key: str = ""
    """It must have this key."""

    @property
    def words(self) -> str:
        """`secret hf-token`."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Mount:
    """What the machine that runs the preflight sees at `cluster.mount_path`."""

    is_there: bool
    is_writable: bool
    """storage.root, or the nearest folder above it that exists."""
    where: str
    """The folder that was looked at."""
    is_needed: bool
    """The launching step runs here, on this very machine or in this pod."""


def claims(cluster: Cluster) -> dict[str, str]:
    """Claims → the settings that name them."""
    extra = {item.claim: f"cluster.volumes ({item.name})" for item in cluster.volumes if item.claim}
    return {**extra, cluster.claim: "cluster.claim"}


def claim_question(namespace: str, name: str) -> Question:
    """Read a claim."""
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
    return Question(path, resource="persistentvolumeclaims")


def judge_claims(cluster: Cluster, answers: Mapping[str, Answer]) -> list[Finding]:
    """Every claim is bound, and the shared one can be written from all nodes."""
    return [_claim(cluster, name, setting, answers[name]) for name, setting in claims(cluster).items()]


def _claim(cluster: Cluster, name: str, setting: str, answer: Answer) -> Finding:
    look = f"kubectl describe persistentvolumeclaim {name} -n {cluster.namespace}"
    if answer.is_missing:
        make = "make it (config/cluster/fsx-static.yaml, fsx-dynamic.yaml), or correct"
        return error("claim", f"there is no claim {name} in namespace {cluster.namespace}", f"{make} {setting}")
    if not answer.is_ok:
        return unread("claim", claim_question(cluster.namespace, name), answer, f"the claim {name}")
    status, meta = answer.body.get("status") or {}, answer.body.get("metadata") or {}
    modes = list(status.get("accessModes") or (answer.body.get("spec") or {}).get("accessModes") or ())
    if meta.get("deletionTimestamp"):
        return error("claim", f"{name} is being deleted", look)
    if status.get("phase") != "Bound":
        return error("claim", f"{name} is {status.get('phase', 'without a phase')}, not Bound", f"look why: {look}")
    if "ReadWriteMany" not in modes and (name == cluster.claim or cluster.nodes > 1):
        what = f"{name} is {', '.join(modes)}; pods on several nodes need ReadWriteMany"
        return error("claim", what, "use a shared file system (FSx for Lustre, EFS); EBS cannot be shared")
    return ok(
        "claim", f"{name} is Bound, {', '.join(modes)}, {(status.get('capacity') or {}).get('storage', 'size unknown')}"
    )


def judge_mount(cluster: Cluster, mount: Mount) -> list[Finding]:
    """Where the launching step runs, the shared file system must be mounted and writable."""
    if not mount.is_needed:
        return []
    if not mount.is_there:
        what = f"{cluster.mount_path} is not mounted here, where the training is watched over"
        return [error("mount", what, "mount it here, or let the steps run as pods: cluster.steps.enabled")]
    if not mount.is_writable:
        who = f"user {cluster.run_as_user} (cluster.run_as_user)" if cluster.steps.enabled else "you"
        return [
            error("mount", f"{mount.where} cannot be written by {who}", f"chown it, or correct {cluster.mount_path}")
        ]
    return [ok("mount", f"{mount.where} can be written from here")]


def named(cluster: Cluster) -> tuple[Named, ...]:
    """All that the pods name besides claims."""
    return tuple(dict.fromkeys(_named(cluster)))


def _named(cluster: Cluster) -> Iterator[Named]:
    steps = cluster.steps
    if cluster.token_secret:
        yield Named("secret", cluster.token_secret, "cluster.token_secret", TOKEN_KEY)
    if cluster.service_account:
        yield Named("serviceaccount", cluster.service_account, "cluster.service_account")
    if steps.enabled and steps.service_account:
        yield Named("serviceaccount", steps.service_account, "cluster.steps.service_account")
    yield from (Named("secret", name, "cluster.image_pull_secrets") for name in cluster.image_pull_secrets)
    if steps.enabled:
        yield from (Named("secret", name, "cluster.steps.secrets") for name in steps.secrets)
    for item in cluster.volumes:
        if item.secret or item.config_map:
            kind = "secret" if item.secret else "configmap"
            yield Named(kind, item.secret or item.config_map, f"cluster.volumes ({item.name})")


def named_question(namespace: str, item: Named) -> Question:
    """Read it."""
    return Question(f"/api/v1/namespaces/{namespace}/{item.kind}s/{item.name}", resource=f"{item.kind}s")


def judge_named(cluster: Cluster, answers: Mapping[Named, Answer], *, account: str = "") -> list[Finding]:
    """Each is there, with its key. A service account that we are (`account`) is there for sure."""
    found, unknown = [], []
    for item, answer in answers.items():
        is_own = account == f"system:serviceaccount:{cluster.namespace}:{item.name}"
        if answer.is_missing:
            found.append(_missing(cluster, item))
        elif answer.is_ok and item.key and item.key not in (answer.body.get("data") or {}):
            added = json.dumps({"stringData": {item.key: "…"}})
            add = f"kubectl patch secret {item.name} -n {cluster.namespace} -p '{added}'"
            found.append(error("names", f"{item.words} ({item.setting}) has no key {item.key}", add))
        elif answer.is_ok or (item.kind == "serviceaccount" and is_own):
            found.append(ok("names", f"{item.words} is there{f', with {item.key}' if item.key else ''}"))
        else:
            unknown.append((item, answer))
    return [*found, *_unknown(cluster, unknown)]


def _missing(cluster: Cluster, item: Named) -> Finding:
    where = f"{item.name} -n {cluster.namespace}"
    make = {
        "secret": f"kubectl create secret generic {where} --from-literal={item.key or 'KEY'}=…",
        "configmap": f"kubectl create configmap {where} --from-literal=KEY=…",
        "serviceaccount": f"kubectl create serviceaccount {where} (or config/cluster/rbac.yaml)",
    }
    what = f"there is no {item.words} in namespace {cluster.namespace}; its pods would never start"
    return error("names", what, f"{make[item.kind]}, or correct {item.setting}")


def _unknown(cluster: Cluster, unread: Sequence[tuple[Named, Answer]]) -> list[Finding]:
    """Only a note where the account may not look, as with the shipped rights: a pod that lacks one says so at once."""
    if not unread:
        return []
    listed = ", ".join(item.words for item, _ in unread)
    look = " && ".join(f"kubectl get {item.words} -n {cluster.namespace}" for item, _ in unread)
    if all(answer.is_forbidden for _, answer in unread):
        return [note("names", f"not known whether these exist, as this account may not read them: {listed}", look)]
    return [warning("names", f"not known whether these exist: {listed} ({unread[0][1].message})", look)]
