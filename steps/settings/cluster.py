"""Settings of a cluster run: the workers' pods, the queue they wait in, and the pods of the flow's other steps.

A part of `config.Settings`. `steps/pytorchjob` makes the manifest from it, `step_pods` the steps' pods. Nothing here talks to a
cluster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steps.errors import Problem
from steps.settings.instances import find_instance, unknown_instance
from steps.settings.options import OPTIONS
from steps.settings.section import Section, suggest

Name = Annotated[str, Field(pattern=r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Of a Kubernetes object; empty: none."""
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
SECRET_WORDS = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
OWN_ENVIRONMENT = frozenset({"NODE_RANK", "POD_NAME", "POD_UID", "NODE_NAME", "MASTER_ADDR", "MASTER_PORT", "HF_TOKEN"})
"""Set by the manifest itself."""


class Volume(Section):
    """One more volume of the workers' pods: give exactly one of `claim`, `host_path`, `config_map`, `secret`."""

    name: Name
    """In the pod's own list of volumes."""
    mount_path: str = Field(pattern="^/")
    """Where the workers see it."""
    read_only: bool = True
    """Nothing can be written there."""
    claim: Name = ""
    """A PersistentVolumeClaim."""
    host_path: str = Field(default="", pattern="^$|^/")
    """A folder of the node itself."""
    config_map: Name = ""
    """A ConfigMap, mounted as files."""
    secret: Name = ""
    """A Secret, mounted as files."""

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        if sum(bool(given) for given in (self.claim, self.host_path, self.config_map, self.secret)) != 1:
            raise ValueError("give exactly one of claim, host_path, config_map, secret")
        return self


class StepPods(Section):
    """The pods of the flow's own steps (start, prepare, merge, evaluate, and the light one that launches training)."""

    enabled: bool = True
    """False: the steps run where the flow was started, which must see `cluster.mount_path`."""
    image: str = ""
    """Empty: `cluster.image`."""
    service_account: Name = ""
    """Of the steps: creates PyTorchJobs, reads pods and logs. Empty: the namespace's default."""
    cpu: float = Field(default=8.0, gt=0)
    """Cores of prepare, merge and evaluate; start and train take one."""
    memory_gib: float = Field(default=32.0, gt=0)
    """GiB of prepare, merge and evaluate; start and train take four."""
    secrets: tuple[str, ...] = ()
    """Secrets whose keys become environment variables of the steps' pods: object storage, say."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Keeps the steps off (or on) some nodes; empty: anywhere."""


class Cluster(Section):
    """A namespace on an EKS cluster that SageMaker HyperPod manages, and what one job takes of it."""

    namespace: Name = ""
    """Where the PyTorchJobs are made."""
    context: str = ""
    """Context of the kubeconfig; empty: the current one, or the pod's own account inside the cluster."""
    image: str = ""
    """Of the workers; holds dependencies only, the code comes with the run."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """As Kubernetes means it."""
    instance_type: str = ""
    """trn1.32xlarge and its like: node selector, devices, EFA, cores. Empty: any node, and no devices."""
    nodes: int = Field(default=1, ge=1, le=999)
    """Pods of one job, one on each node."""
    min_nodes: int = Field(default=0, ge=0, le=999)
    """Go on with fewer nodes, down to this, when not all could start; 0: never fewer."""
    cpu: float = Field(default=0.0, ge=0)
    """Cores of one worker pod; 0: the instance type's, less some for the node itself."""
    memory_gib: float = Field(default=0.0, ge=0)
    """GiB of one worker pod; 0: the instance type's, less some for the node itself."""
    shared_memory_gib: float = Field(default=64.0, gt=0)
    """Size of /dev/shm."""
    claim: Name = "fsx-claim"
    """The shared file system's PersistentVolumeClaim, ReadWriteMany."""
    mount_path: str = Field(default="/fsx", pattern="^/")
    """Where it is mounted; `storage.root` and `storage.cache` lie below."""
    service_account: Name = ""
    """Of the workers, which need no permission; empty: the namespace's default."""
    run_as_user: int = Field(default=1000, ge=0)
    """User and group id of all pods; files on the shared file system belong to it. 0: as the image says."""
    queue: Name = ""
    """Kueue's LocalQueue; empty: no queue."""
    priority: Name = ""
    """Kueue's WorkloadPriorityClass; needs `queue`."""
    topology: Literal["", "preferred", "required"] = ""
    """Ask for nodes near each other; only where the queue's flavor has a topology, else the job waits for ever."""
    topology_level: str = "topology.k8s.aws/network-node-layer-3"
    """How near: 3 is nearest."""
    token_secret: Name = ""
    """Secret with the key HF_TOKEN, for gated models; the token itself never enters a manifest."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Added to job and pods."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Added to job and pods."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Added to the instance type's."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """As Kubernetes writes them, added to our own."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Of the workers, and stronger than our own. Not for secrets: it stands in the manifest."""
    volumes: tuple[Volume, ...] = ()
    """Mounted into the workers' pods besides the shared file system."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with a registry's login; none is needed for ECR."""
    require_healthy_nodes: bool = True
    """Only on nodes that HyperPod labels Schedulable; false on a cluster that HyperPod does not manage."""
    recovery: Literal["client", "hyperpod"] = "client"
    """Who starts failed workers again: this project, or HyperPod's auto-resume. Never both."""
    hyperpod_retries: int = Field(default=2, ge=1)
    """Retries of HyperPod's auto-resume, where it owns the recovery."""
    lease_s: float = Field(default=600.0, ge=30)
    """Workers that nobody has watched for so long save, stop, and give their nodes back."""
    detach: bool = False
    """Ctrl-C leaves the job running (until `deadlines.total_s`); `resume` adopts it."""
    name_wait_s: float = Field(default=900.0, gt=0)
    """How long a pod waits until worker 0's name can be resolved."""
    api_patience_s: float = Field(default=1800.0, gt=0)
    """How long the API may be away before the step gives up (the workers go on; a retry adopts them)."""
    hyperpod_cluster: str = ""
    """Name of the HyperPod cluster, for the preflight's look at its state; empty: not looked at."""
    region: str = ""
    """AWS region of it; empty: the environment's."""
    preflight: bool = True
    """`start` checks the cluster before anything runs."""
    steps: StepPods = StepPods()
    """The flow's own steps as pods."""

    @field_validator("environment")
    @classmethod
    def _no_secret(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if name in OWN_ENVIRONMENT:
                raise ValueError(f"{name} is set by the job itself")
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is no name of an environment variable")
            if SECRET_WORDS.search(name) and given[name]:
                raise ValueError(
                    f"{name} looks like a secret, and this stands in the manifest: use token_secret, or a volume of a secret"
                )
        return given

    @property
    def node_choices(self) -> tuple[int, ...]:
        """Numbers of nodes that are allowed, the largest first."""
        return tuple(range(self.nodes, (self.min_nodes or self.nodes) - 1, -1))


class Trigger(Section):
    """The event that starts the deployed flow."""

    event: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """Its name; empty: none."""
    of_project: bool = False
    """The name is one within `deployment.project` and its branch, as `announce` makes them."""
    parameters: dict[str, str] = Field(default_factory=dict)
    """Option → field of the event's payload that gives its value; empty: each option by its own name."""

    @field_validator("parameters")
    @classmethod
    def _known(cls, given: dict[str, str]) -> dict[str, str]:
        named = {name.replace("-", "_"): value for name, value in given.items()}
        for name, value in named.items():
            if name not in OPTIONS:
                raise ValueError(f"no such option: {name[:80]!r}{suggest(name, list(OPTIONS))}")
            if not re.fullmatch(r"[A-Za-z0-9_]+", value):
                raise ValueError(f"{value[:80]!r} is no field that Argo can read: letters, digits and underscores only")
        return named


class Deployment(Section):
    """The flow on Argo Workflows: whose it is, what starts it, what it starts."""

    project: str = Field(default="", pattern=r"^[a-z0-9_]{0,128}$")
    """Metaflow's @project, of a team say: runs and deployments of several do not meet, names and tags begin with it."""
    branch: str = Field(default="", pattern=r"^[a-z0-9_]{0,128}$")
    """As Metaflow's --branch: makes `test.<branch>`, in production `prod.<branch>`; empty: `user.<name>` or `prod`."""
    production: bool = False
    """The project's production, as Metaflow's --production."""
    trigger: Trigger = Trigger()
    """An event that starts it."""
    schedule: str = ""
    """Five fields of cron, when it starts by itself, with the options of `run`; empty: never."""
    timezone: str = ""
    """Of the schedule, as Europe/Berlin; empty: UTC."""
    announce: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """Event that a run on Argo publishes when its model has passed the gate; empty: none."""

    @field_validator("schedule")
    @classmethod
    def _five_fields(cls, given: str) -> str:
        if given and len(given.split()) != 5:
            raise ValueError("expected five fields (minute, hour, day, month, weekday), as in 0 2 * * *")
        return given

    @model_validator(mode="after")
    def _whole(self) -> Deployment:
        if (self.trigger.of_project or self.branch or self.production) and not self.project:
            raise ValueError("branch, production and trigger.of_project need a project")
        if self.announce and self.announce == self.trigger.event:
            raise ValueError("announce is the event of its own trigger: each run that passes would start the next one")
        if self.timezone and not self.schedule:
            raise ValueError("a timezone needs a schedule")
        if self.trigger.parameters and not self.trigger.event:
            raise ValueError("trigger.parameters need an event")
        return self


def cluster_problems(cluster: Cluster, *, root: str, cache: str) -> list[Problem]:
    """What contradicts what in a run on this cluster; `root` and `cache` are storage's."""
    required = {"namespace": cluster.namespace, "image": cluster.image, "claim": cluster.claim}
    problems = [
        Problem(f"cluster.{key}", "must be given when launcher.kind is pytorchjob")
        for key, value in required.items()
        if not value
    ]

    def refuse(wrong: bool, path: str, message: str) -> None:
        if wrong:
            problems.append(Problem(path, message))

    mount = PurePosixPath(cluster.mount_path)
    for key, value in (("root", root), ("cache", cache)):
        what = f"must lie below cluster.mount_path, {mount}, which all pods share; got {value!r}"
        refuse(not PurePosixPath(value).is_relative_to(mount), f"storage.{key}", what)
    known = not cluster.instance_type or find_instance(cluster.instance_type)
    refuse(not known, "cluster.instance_type", unknown_instance(cluster.instance_type))
    fewer = f"must be <= cluster.nodes, {cluster.nodes}, got {cluster.min_nodes}"
    refuse(cluster.min_nodes > cluster.nodes, "cluster.min_nodes", fewer)
    for key, value in (("priority", cluster.priority), ("topology", cluster.topology)):
        refuse(bool(value) and not cluster.queue, f"cluster.{key}", "needs cluster.queue, which is empty")
    if cluster.recovery == "hyperpod":
        where = f"auto-resume acts in the namespaces kubeflow and hyperpod* only, got {cluster.namespace!r}"
        refuse(not re.match(r"kubeflow$|hyperpod", cluster.namespace), "cluster.namespace", where)
        one_owner = "cannot be used with recovery: hyperpod, which owns the pods; leave it 0"
        refuse(0 < cluster.min_nodes < cluster.nodes, "cluster.min_nodes", one_owner)
    return problems


def hidden_paths(cluster: Cluster, paths: Mapping[str, str]) -> list[Problem]:
    """Which of the given paths, by option, the pods do not see."""
    seen = [PurePosixPath(cluster.mount_path), *(PurePosixPath(item.mount_path) for item in cluster.volumes)]
    what = f"must lie below cluster.mount_path, {cluster.mount_path}, for the pods to see it; or name an s3:// prefix or a hub id"
    return [
        Problem(option, f"{path} {what}")
        for option, path in paths.items()
        if path and not any(PurePosixPath(path).is_relative_to(folder) for folder in seen)
    ]
