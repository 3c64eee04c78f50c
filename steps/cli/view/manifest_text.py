"""The PyTorchJob of a training as text, with what it needs and why it looks as it does; for `jobspec`.

`planned` needs nothing but settings and options: paths and digests are then placeholders. `by_hand` reads a prepared run and
makes the very job that the flow would submit. It writes nothing unless it is told to. Then it writes spec.json, the code archive,
the attempt and a lease that does not end: with these, the workers do without a supervisor and a later `resume` adopts them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from steps.errors import ConfigError, Problem, StorageError
from steps.flow.launchers import spec_of
from steps.flow.training import read_inputs
from steps.job import history as memory
from steps.job.history import Attempt, History
from steps.job.job import Job
from steps.job.lease import detach, holder_of
from steps.plain_text import command, counted
from steps.protocol.run_options import how_to_continue, how_to_resume
from steps.protocol.rundir import RunDir, TrainDir, held_lock, run_directory, write_atomic, write_json
from steps.pytorchjob import manifest as pytorchjob
from steps.pytorchjob.spec import Code, JobSpec
from steps.settings.places import home, package_sources
from steps.settings.plan import Plan
from steps.train.stage import WORKER, notes, process_environment

SUFFIXES = (".py", ".yaml", ".json")
PLACEHOLDER = "0" * 64


@dataclass(frozen=True, slots=True)
class Printable:
    """A job, and what it was made from."""

    plan: Plan
    spec: JobSpec
    job: Job
    attempt: int
    is_real: bool
    """It can be applied: all that its pods need is on disk."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The PyTorchJob."""
        return pytorchjob.build(self.spec, self.job, self.attempt)


def planned(plan: Plan) -> Printable:
    """The job of a run that does not exist yet."""
    run = run_directory(plan.settings.storage.root, home(), "LoraFlow", "RUN-ID")
    job = Job(
        module=WORKER,
        spec={},
        directory=run.train("IDENTITY"),
        identity="IDENTITY",
        total_steps=plan.max_steps,
        processes=plan.processes,
        nodes=plan.nodes,
        threads_per_process=plan.settings.launcher.threads_per_process,
        environment=process_environment(plan),
        notes=notes(plan),
        label=f"{plan.model.name}-{plan.dataset.name}",
    )
    code = Code(str(run.path / "code" / "CODE.tgz"), PLACEHOLDER)
    spec = spec_of(plan.settings, run="LoraFlow/RUN-ID", step="train", code=code)
    return Printable(plan, spec, job, 1, is_real=False)


def by_hand(run: RunDir, *, write: bool) -> Printable:
    """The job of a prepared run. `write`: put on disk what its pods need, so that it can be applied.

    Raises:
        ConfigError: the run was planned for one machine.
        StorageError: nothing was prepared, it was trained already, or an attempt has begun or is watched over.
    """
    inputs = read_inputs(run)
    settings = inputs.plan.settings
    if not settings.is_on_cluster:
        what = f"is {settings.launcher.kind!r} in the plan of {run.path}: prepare it with a cluster's config"
        raise ConfigError([Problem("launcher.kind", what)])
    _, job = inputs.job(run)
    if job.directory.adapter.is_dir():
        raise StorageError(f"{job.directory.adapter} is there: this run was trained already; nothing is left to submit")
    _require_nobody_acts(job.directory)
    code = newest_code(run) or archive_sources(run, write=write)
    history = _with_next_attempt(job)
    job = history.rename(job)
    attempt = history.attempts[-1].number
    if write:
        memory.save(job.directory.history, history)
        write_json(job.directory.spec, dict(job.spec))
        detach(job.directory, attempt)
    # The directory keeps its name through `resume`, whose runs have ids of their own.
    spec = spec_of(settings, run="/".join(run.path.parts[-2:]), step="train", code=code)
    return Printable(inputs.plan, spec, job, attempt, is_real=write)


def _require_nobody_acts(directory: TrainDir) -> None:
    if not directory.lock.exists():
        return
    holder = holder_of(directory.path)
    who = f"process {holder['pid']} on {holder['node']}" if holder else "another process"
    with held_lock(
        directory.lock, timeout_s=0.0, what=f"{directory.path} is watched over by {who}, which submits jobs"
    ):
        return


def _with_next_attempt(job: Job) -> History:
    """The history with the attempt to submit, which it names before it exists, as the supervisor does.

    Raises:
        StorageError: an attempt has begun, and nobody has seen its end.
    """
    history = memory.load(job.directory.history, job.identity)
    last, run = history.last, job.directory.path.parent
    if last and last.is_open:
        if job.directory.files(last.number).nodes.is_dir():
            raise StorageError(
                f"attempt {last.number} of {job.directory.path} has begun: `{command('status', run)}` tells how it is, "
                f"`{how_to_resume(run)}` adopts it, or goes on from its last checkpoint"
            )
        history = replace(history, attempts=history.attempts[:-1])
    number = history.last.number + 1 if history.last else 1
    begun = Attempt(number, time.time(), job.spec_digest, begins_session=True, nodes=job.nodes)
    label, attempts = history.label or job.label, (*history.attempts, begun)
    return replace(history.reset_retry_count(), label=label, attempts=attempts)


def newest_code(run: RunDir) -> Code | None:
    """The newest archive of the run's code, as the flow's train step leaves it."""
    found = sorted((run.path / "code").glob("*.tgz"), key=lambda path: path.stat().st_mtime)
    return Code(str(found[-1]), hashlib.sha256(found[-1].read_bytes()).hexdigest()) if found else None


def archive_sources(run: RunDir, *, write: bool) -> Code:
    """An archive of the sources that this command runs from, written only if `write`; the same sources give the same bytes.

    Raises:
        StorageError: the disk refused.
    """
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for folder, name in package_sources():
            for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()):
                entry = tarfile.TarInfo(f"{name}/{path.relative_to(folder)}")
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = run.path / "code" / f"{digest[:16]}.tgz"
    if write:
        write_atomic(path, data)
    return Code(str(path), digest)


def text_of(made: Printable, *, reasons: Sequence[str], warnings: Sequence[str] = ()) -> str:
    """The manifest as YAML, below comments that say what it needs."""
    comments = [*_heading(made), "", *_needs(made), "", *(f"Layout: {line}" for line in reasons)]
    comments += ["", *(_how_to_use(made)), *(f"WARNING: {line}" for line in warnings)]
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    return head + yaml.dump(made.manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _heading(made: Printable) -> list[str]:
    plan = made.plan
    model, dataset = plan.model.title or plan.model.name, plan.dataset.title or plan.dataset.name
    return [
        f"{model} on {dataset}: attempt {made.attempt} of the training, one PyTorchJob.",
        f"{counted(plan.nodes, 'node')} × {counted(plan.processes, 'process', 'processes')}; "
        f"{counted(plan.training.global_batch, 'row')} a step = "
        f"{counted(plan.replicas, 'replica')} × {plan.training.micro_batch} × {plan.accumulation} accumulated.",
    ]


def _needs(made: Printable) -> list[str]:
    """What has to be there, one line each."""
    cluster, code = made.spec.cluster, made.spec.code
    nodes = f"{made.job.nodes} × {cluster.instance_type}" if cluster.instance_type else f"{made.job.nodes}, of any type"
    healthy = ", labelled Schedulable by HyperPod" if cluster.require_healthy_nodes else ""
    token = f"secret {cluster.token_secret} with the key HF_TOKEN" if cluster.token_secret else "no secret"
    volumes = [
        f"volume             {item.name} at {item.mount_path}: {item.claim or item.host_path or item.config_map or item.secret}"
        for item in cluster.volumes
    ]
    return [
        "It needs:",
        f"namespace          {cluster.namespace}, with the Kubeflow Training Operator ({pytorchjob.API_VERSION})",
        f"nodes              {nodes}{healthy}",
        f"image              {cluster.image}, which holds the dependencies",
        f"claim              {cluster.claim}, ReadWriteMany, mounted at {cluster.mount_path}",
        f"service account    {cluster.service_account or 'the default one'}; the workers need no permission",
        f"token              {token}",
        *([f"queue              {cluster.queue} (Kueue)"] if cluster.queue else []),
        *volumes,
        f"code               {code.path}",
        f"prepared run       {made.job.directory.path}, whose files user {cluster.run_as_user or 'of the image'} may write",
    ]


def _how_to_use(made: Printable) -> list[str]:
    namespace, name = made.spec.cluster.namespace, made.manifest["metadata"]["name"]
    if not made.is_real and made.job.spec:
        return [
            "Not to be applied as it stands: nothing was written. Its pods need spec.json and code in the run directory:",
            "  hyperpod-lora jobspec --run RUN --write --config FILE | kubectl apply -f -",
        ]
    if not made.is_real:
        return [
            "Not to be applied as it stands: RUN-ID, IDENTITY and CODE are placeholders until a run has prepared its data.",
            "  hyperpod-lora run --config FILE …              prepares and submits it, watches, recovers",
            "  hyperpod-lora run --config FILE … --dry-run    prepares only; then, by hand:",
            "  hyperpod-lora jobspec --run RUN-ID --write --config FILE | kubectl apply -f -",
        ]
    run = made.job.directory.path.parent
    go_on = how_to_continue(run) if made.plan.dry_run else how_to_resume(run)
    return [
        "Nobody watches over it: it is not retried, and it runs until it ends or is deleted.",
        f"  kubectl -n {namespace} logs -f {name}-worker-0",
        f"  {go_on}    adopts it, and watches",
    ]
