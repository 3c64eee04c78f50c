"""What only someone who has watched a job for a while can know. Pure: time comes in, questions to the API go out.

`advance` takes a look in and says what is worth asking, `Seen.with_…` takes an answer in, `judge` corrects the snapshot:

| watched | then |
|---|---|
| the job was there, and is gone | cancelled: somebody deleted it |
| its deletion was asked for while it was watched, and its workers have ended | the same: it stays until its pods are gone |
| it was begun, and was gone before we looked | preempted: it was deleted while nobody watched |
| a pod is on its way out, and its node does not answer | it is not waited for |
| pods do not come | the events say why: a quota, a validation |
| an image is not pulled, and the pod does not say why | what it said before, or its events |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from steps.job.snapshot import JobSnapshot, Phase, Reason
from steps.pytorchjob.pod_words import INVALID, failed_pull
from steps.pytorchjob.snapshot import GONE_WITH_NODE, has_conditions, is_suspended

NOTICE_S = 60.0
"""Within this time the operator has taken notice of a job, or never will: 1.7.0 has no webhook that would refuse one."""
ASK_SOON_S, ASK_AGAIN_S = 5.0, 30.0
"""Between two questions for events: in the first minute until they say something, and later."""
CONFIRM_S = 2.0
"""Between two questions for a job that the watch does not show, or for a node."""


class Ask(StrEnum):
    """What the API is asked beside the watch."""

    JOB = "job"
    """The watch may lag behind a job that was just made."""
    EVENTS = "events"
    NODE = "node"
    PULL = "pull"
    """Events of a pod whose image is not pulled."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the API."""

    ask: Ask
    name: str
    """Name of the job, the node or the pod."""
    uid: str = ""
    """UID of that pod, or of the pod on that node."""
    is_given_up: bool = False
    """The cluster itself has given this pod up."""


@dataclass(frozen=True, slots=True)
class Look:
    """A job and its pods at one moment."""

    now_s: float
    job: Mapping[str, Any] | None
    pods: tuple[Mapping[str, Any], ...]
    nodes: int
    """Pods that there should be."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the looks at one attempt have brought so far."""

    since_s: float
    has_been: bool = False
    """The job was seen."""
    has_stayed: bool = False
    """It was seen before anybody had asked for its deletion."""
    hint: str = ""
    """What the events say about pods that do not come."""
    asked_s: Mapping[Ask, float] = field(default_factory=dict)
    """When each was last asked."""
    leaving_s: Mapping[str, float] = field(default_factory=dict)
    """When a pod was first seen on its way out, by UID."""
    dead: frozenset[str] = frozenset()
    """UIDs of pods whose node does not answer."""
    pulls: Mapping[str, str] = field(default_factory=dict)
    """Why an image could not be pulled the last time, by the pod's UID."""

    def is_due(self, ask: Ask, every_s: float, now_s: float) -> bool:
        """Whether it is time to ask."""
        return now_s - self.asked_s.get(ask, float("-inf")) >= every_s

    def asked(self, ask: Ask, now_s: float) -> Seen:
        """It is asked now."""
        return replace(self, asked_s={**self.asked_s, ask: now_s})

    def with_warnings(self, events: tuple[Mapping[str, Any], ...]) -> Seen:
        """What the latest warnings about the job say."""
        said = [f"{event['reason']}: {event['message']}" for event in events if event.get("type") == "Warning"]
        return replace(self, hint="; ".join(dict.fromkeys(said[-3:])))

    def with_pull(self, question: Question, events: tuple[Mapping[str, Any], ...]) -> Seen:
        """What a pod's events say about its image."""
        said = [str(event.get("message", "")) for event in events if event.get("reason") == "Failed"]
        told = [message for message in said if message.startswith("Failed to pull image")]
        return replace(self, pulls={**self.pulls, question.uid: told[-1]}) if told else self

    def with_node(self, question: Question, is_ready: bool | None) -> Seen:
        """Whether the node of a leaving pod answers; None: nodes may not be read."""
        is_dead = is_ready is False or (is_ready is None and question.is_given_up)
        return replace(self, dead=self.dead | {question.uid}) if is_dead else self


def advance(seen: Seen, look: Look) -> tuple[Seen, tuple[Question, ...]]:
    """What is known after a look, and what is worth asking now."""
    leaving = {pod["metadata"]["uid"] for pod in look.pods if pod["metadata"].get("deletionTimestamp")}
    first = {uid: seen.leaving_s.get(uid, look.now_s) for uid in sorted(leaving)}
    told = {pod["metadata"]["uid"]: pull for pod in look.pods if (pull := failed_pull(pod))}
    has_been = seen.has_been or look.job is not None
    has_stayed = seen.has_stayed or (look.job is not None and not _is_leaving(look.job))
    seen = replace(seen, has_been=has_been, has_stayed=has_stayed)
    seen = replace(seen, leaving_s={**seen.leaving_s, **first}, pulls={**seen.pulls, **told})
    questions = (*_about_nodes(seen, look), *_about_events(seen, look), *_about_pulls(seen, look))
    for question in questions:
        seen = seen.asked(question.ask, look.now_s)
    return seen, questions


def _is_leaving(job: Mapping[str, Any]) -> bool:
    return bool(job["metadata"].get("deletionTimestamp"))


def _about_nodes(seen: Seen, look: Look) -> Iterator[Question]:
    """Pods on their way out whose node does not answer: nobody can say whether they still run, and waiting is in vain.

    What protects the checkpoints from them is that every writer has a directory of its own. One node is asked at a time.
    """
    if not seen.is_due(Ask.NODE, CONFIRM_S, look.now_s):
        return
    for pod in look.pods:
        metadata = pod["metadata"]
        if not metadata.get("deletionTimestamp") or metadata["uid"] in seen.dead:
            continue
        reasons = {item.get("reason") for item in pod["status"].get("conditions") or []}
        is_given_up = bool(reasons & GONE_WITH_NODE)
        grace_s = float(metadata.get("deletionGracePeriodSeconds") or 0)
        if is_given_up or look.now_s - seen.leaving_s[metadata["uid"]] >= grace_s + CONFIRM_S:
            yield Question(Ask.NODE, str(pod["spec"].get("nodeName") or ""), metadata["uid"], is_given_up)
            return


def _about_events(seen: Seen, look: Look) -> Iterator[Question]:
    """Why pods do not come: only the events say. Asked seldom, and only then."""
    if look.job is None or len(look.pods) >= look.nodes or is_suspended(look.job):
        return
    age_s = look.now_s - seen.since_s
    every_s = ASK_AGAIN_S if seen.hint or age_s > NOTICE_S else ASK_SOON_S
    if age_s >= CONFIRM_S and seen.is_due(Ask.EVENTS, every_s, look.now_s):
        yield Question(Ask.EVENTS, str(look.job["metadata"]["name"]))


def _about_pulls(seen: Seen, look: Look) -> Iterator[Question]:
    """Why an image is not pulled, of a pod that says so in an event only: one at a time."""
    if not seen.is_due(Ask.PULL, ASK_AGAIN_S, look.now_s):
        return
    for pod in look.pods:
        metadata = pod["metadata"]
        if failed_pull(pod) == "" and metadata["uid"] not in seen.pulls:
            yield Question(Ask.PULL, str(metadata["name"]), metadata["uid"])
            return


def judge(seen: Seen, look: Look, snapshot: JobSnapshot, *, was_begun: bool) -> JobSnapshot:
    """The snapshot, by the table above. `was_begun`: an agent of this attempt has written something."""
    if snapshot.phase is Phase.GONE and seen.has_been:
        return JobSnapshot(Phase.GONE, (), Reason.CANCELLED, "", snapshot.remaining)
    if snapshot.phase is Phase.GONE and was_begun:
        words = "the job was deleted while nobody watched it"
        return JobSnapshot(Phase.FAILED, (), Reason.PREEMPTED, words, snapshot.remaining)
    if snapshot.is_over and seen.has_stayed and look.job is not None and _is_leaving(look.job):
        return replace(snapshot, reason=Reason.CANCELLED)
    is_ignored = look.job is not None and not has_conditions(look.job) and not is_suspended(look.job)
    if is_ignored and look.now_s - seen.since_s > NOTICE_S and INVALID in seen.hint:
        return JobSnapshot(Phase.FAILED, (), Reason.CONFIG, seen.hint, snapshot.remaining, is_refused=True)
    return snapshot
