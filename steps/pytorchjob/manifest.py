"""The PyTorchJob of one attempt, as a plain dict. Pure: nothing is asked of a cluster, so it can be printed and compared.

Worker-only, without elasticPolicy, `restartPolicy: Never`, with a static rendezvous: operator 1.7.0 never restarts a whole job,
a single recreated rank can only hang, and with elasticPolicy any worker that exits 0 makes the job succeed. So an attempt is one
fresh job, and the retry is the supervisor's (`recovery: hyperpod` gives it to HyperPod instead). What runs inside the pods is
`agent.pod_main`; `agent.bootstrap` brings the code there. The parts of the pod are in `pod_template`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from steps.job.job import Job
from steps.pytorchjob import pod_template
from steps.pytorchjob.pod_template import NOWHERE, Shunned
from steps.pytorchjob.spec import JobSpec

API_VERSION, KIND = "kubeflow.org/v1", "PyTorchJob"
LONGEST_NAME = 50
"""The operator makes `<name>-worker-<i>` of it, which must stay below 64 characters."""
KEEP_FINISHED_S = 86400
"""A job that nobody deletes is removed by the operator a day after its end."""
LABEL = "hyperpod-lora/"
MANAGED_BY = "app.kubernetes.io/managed-by"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
AUTO_RESUME = "sagemaker.amazonaws.com/enable-job-auto-resume"
MAX_RETRIES = "sagemaker.amazonaws.com/job-max-retry-count"


def build(spec: JobSpec, job: Job, attempt: int, *, shunned: Shunned = NOWHERE) -> dict[str, Any]:
    """The manifest of an attempt."""
    cluster = spec.cluster
    labels = labels_of(spec, job, attempt)
    metadata: dict[str, Any] = {
        "name": name_of(spec, job, attempt),
        "namespace": cluster.namespace,
        "labels": labels,
        "annotations": {**_annotations(spec, job), **cluster.annotations},
    }
    if spec.owner:
        metadata["ownerReferences"] = [dict(spec.owner)]
    worker = {
        "replicas": job.nodes,
        "restartPolicy": "OnFailure" if cluster.recovery == "hyperpod" else "Never",
        "template": pod_template.template(spec, job, attempt, name=metadata["name"], labels=labels, shunned=shunned),
    }
    body = {
        "nprocPerNode": str(job.processes),
        # Running: a failed attempt gives its nodes back at once, and keeps the failed pods for a look.
        "runPolicy": {"cleanPodPolicy": "Running", "ttlSecondsAfterFinished": KEEP_FINISHED_S},
        "pytorchReplicaSpecs": {"Worker": worker},
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": body}


def name_of(spec: JobSpec, job: Job, attempt: int) -> str:
    """`<model>-<dataset>-<step>-<hash>-a<N>`: the same for every launcher of this training, so a second one finds the job.

    The hash is of run directory and identity; an over-long readable part is cut.
    """
    step = job.step or spec.step
    key = f"{job.directory.path}\0{job.identity}\0{step}"
    end = f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}-a{attempt}"
    readable = re.sub(r"[^a-z0-9]+", "-", f"{job.label}-{step}".lower()).strip("-")
    if not readable[:1].isalpha():
        readable = f"lora-{readable}"
    return readable[: LONGEST_NAME - len(end)].rstrip("-") + end


def labels_of(spec: JobSpec, job: Job, attempt: int) -> dict[str, str]:
    """Labels of job and pods, by which they are found again."""
    cluster = spec.cluster
    found = {
        MANAGED_BY: "hyperpod-lora",
        f"{LABEL}run": label_value(spec.run),
        f"{LABEL}step": label_value(job.step or spec.step),
        f"{LABEL}attempt": str(attempt),
    }
    if cluster.queue:
        found[QUEUE] = cluster.queue
    if cluster.priority:
        found[PRIORITY] = cluster.priority
    return {**cluster.labels, **found}


def label_value(text: str) -> str:
    """`text` as a label's value: at most 63 of the allowed characters."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-63:].strip("-_.")


def _annotations(spec: JobSpec, job: Job) -> dict[str, str]:
    found = {
        f"{LABEL}spec-sha256": job.spec_digest,
        f"{LABEL}directory": str(job.directory.path),
        f"{LABEL}run": spec.run,
        f"{LABEL}total-steps": str(job.total_steps),
        **{f"{LABEL}{name}": text for name, text in job.notes.items()},
    }
    if spec.cluster.recovery == "hyperpod":
        found |= {AUTO_RESUME: "true", MAX_RETRIES: str(spec.cluster.hyperpod_retries)}
    return found
