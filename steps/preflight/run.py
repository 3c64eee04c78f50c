"""The preflight: asks the cluster everything that the checks judge, all at once, and changes nothing.

Called by `stages.start` (`require`) and by `hyperpod-lora preflight` (`findings`), from a laptop as from a pod. Each question
has a time limit, and all of them together; a question without an answer becomes a finding, never a crash. What the answers mean
is decided in `survey` and the modules that it asks, without a cluster.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import Path
from typing import TypeVar

from kubernetes.client import ApiClient
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from steps.errors import ClusterError
from steps.preflight import aws, cloud, finding, queue, storage, survey
from steps.preflight.finding import Finding
from steps.preflight.question import Answer, Question
from steps.preflight.survey import Target
from steps.pytorchjob.connection import load_client

LIMIT_S = 9.0
"""All questions together."""
CONNECT_S = 3.0
"""One question: to connect. To be answered: as long as there is time."""
AT_ONCE = 12
"""Questions under way at the same time."""
PATIENCE_S, PAUSE_S = 60.0, 5.0
"""`start` bears with an API server that is away for a moment: it looks again."""
Ask = Callable[[Question], Answer]
T = TypeVar("T")


def findings(
    target: Target, *, connect: Callable[[str], ApiClient] = load_client, limit_s: float = LIMIT_S
) -> list[Finding]:
    """Everything, good and bad, within `limit_s`."""
    with _Pool(time.monotonic() + limit_s) as pool:
        outside = pool.start({"cluster": aws.describe, "nodes": aws.list_nodes, "bucket": aws.head_bucket}, target)
        found = _inside(target, pool, connect)
        return [*found, *_outside(target, {key: pool.result(future) for key, future in outside.items()})]


def require(
    target: Target,
    *,
    notice: Callable[[str], None],
    look: Callable[[Target], list[Finding]] = findings,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Go on only where nothing forbids it; warnings are told.

    Raises:
        ClusterError: with every error that was found, and what to do about each.
    """
    until_s = clock() + PATIENCE_S
    while survey.is_away(found := look(target)) and clock() < until_s:
        notice(f"preflight: {found[0].message}; looking again in {PAUSE_S:g} s")
        sleep(PAUSE_S)
    for item in found:
        if item.severity == "warning":
            notice(f"preflight: {item.check}: {item.message} → {item.fix}")
    wrong = finding.errors(found)
    if wrong:
        where = f"namespace {target.settings.cluster.namespace}"
        raise ClusterError(f"the cluster cannot run this job ({where}):\n{finding.table(wrong)}")


def _inside(target: Target, pool: _Pool, connect: Callable[[str], ApiClient]) -> list[Finding]:
    """What the API server knows; one finding if it cannot be reached."""
    try:
        ask = _asker(connect(target.settings.cluster.context), pool.until_s)
    except ClusterError as error:
        return [finding.error("login", str(error), "set KUBECONFIG or cluster.context, or: aws eks update-kubeconfig")]
    version = ask(survey.VERSION)
    if not version.is_ok:
        return [survey.unreachable(version)]
    made = survey.sample(target)
    known = pool.ask(ask, survey.questions(target, made))
    while more := queue.questions(target.settings.cluster, known):
        known |= pool.ask(ask, more)
    return survey.judge(target, made, {**known, "version": version})


def _outside(target: Target, known: Mapping[str, Answer]) -> list[Finding]:
    """What is not the API server's: this machine's mount, the datastore, AWS."""
    cluster = target.settings.cluster
    found = storage.judge_mount(cluster, look_at_mount(target))
    found += cloud.judge_datastore(cluster, target.datastore, known["bucket"])
    return found + cloud.judge_cluster(cluster, known["cluster"], known["nodes"])


def look_at_mount(target: Target) -> storage.Mount:
    """The shared file system, as this machine sees it."""
    cluster, root = target.settings.cluster, Path(target.settings.storage.root)
    where = next(path for path in (root, *root.parents) if path.exists())
    is_needed = target.is_inside or not cluster.steps.enabled
    return storage.Mount(Path(cluster.mount_path).is_dir(), os.access(where, os.W_OK), str(where), is_needed)


def _asker(api: ApiClient, until_s: float) -> Ask:
    """One request to the API server, as a function that never raises."""
    api.configuration.retries = False  # a second try would need the time of all the others
    api.configuration.connection_pool_maxsize = AT_ONCE
    client = ApiClient(api.configuration)

    def ask(question: Question) -> Answer:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return Answer(0, reason="not asked: the time was over")
        asked = client.param_serialize(
            "GET" if question.body is None else "POST",
            question.path,
            query_params=list(question.query),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=question.body,
            auth_settings=["BearerToken"],
        )
        limits = (min(CONNECT_S, left_s), left_s)
        try:
            response = client.call_api(*asked, _request_timeout=limits)
            return _answer(response.status, response.read())
        except ApiException as error:  # of the connection's security; its text names host and certificate only
            return Answer(0, reason=str(error.reason))
        except HTTPError as error:
            return Answer(0, reason=f"{type(error).__name__} at {client.configuration.host}")

    return ask


def _answer(status: int, data: bytes) -> Answer:
    try:
        body = json.loads(data or b"{}")
    except ValueError:
        return Answer(status, reason=data[:200].decode(errors="replace"))
    return Answer(status, body if isinstance(body, dict) else {})


class _Pool:
    """Threads that ask, and a clock that ends the waiting for them."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="preflight")

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def start(self, calls: Mapping[str, Callable[[T], Answer]], given: T) -> dict[str, Future[Answer]]:
        """Begin, and come back later for the results."""
        return {key: self._threads.submit(call, given) for key, call in calls.items()}

    def result(self, future: Future[Answer]) -> Answer:
        """An answer, or that there was none in time."""
        try:
            return future.result(max(0.0, self.until_s - time.monotonic()))
        except TookTooLong:
            return Answer(0, reason="no answer in time")

    def ask(self, ask: Ask, asked: Mapping[str, Question]) -> dict[str, Answer]:
        """All of them at once."""
        begun = {key: self._threads.submit(ask, question) for key, question in asked.items()}
        return {key: self.result(future) for key, future in begun.items()}
