"""What a pod's status says of its end, or of what keeps it from starting: a `Reason` and the platform's words. Pure.

Used by `snapshot`. Sources: the kubelet's and the scheduler's code. What may pass (a registry, a secret, room on a node) is told
and does not end the attempt: the startup deadline decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from steps.job.snapshot import REASONS, Reason, reason_of
from steps.protocol.events import PREFIX
from steps.protocol.failure_record import parse_record

CONTAINER = "pytorch"
PULLS = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"})
NO_SUCH_IMAGE = re.compile(
    r"not found|manifest unknown|denied|unauthorized|forbidden|no such host|invalid reference|not present|basic auth",
    re.I,
)
"""In a pull's message: what is still so when the startup deadline has passed is the image's fault. A registry that is slow or
away says other things."""
BARE_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*"\.?')
"""All that a kubelet before 1.31 says of a pull between two tries; why the last one failed was said then, and in an event."""
PASSING_CONFIG = re.compile(r"failed to sync|timed out|timeout", re.I)
"""A container that cannot be created since the kubelet could not ask: nothing is wrong with the settings."""
PENDING_CLASS = {
    re.compile(r'persistentvolumeclaim "[^"]*" not found', re.I): Reason.CONFIG,
    re.compile(r"exceeded quota", re.I): Reason.CONFIG,
    re.compile(r"^FailedCreatePod:.* is forbidden: ", re.I): Reason.CONFIG,
}
"""What the scheduler or the API says of pods that do not come: the class when the startup deadline has passed."""
REFUSED = re.compile(r"violates PodSecurity|(minimum|maximum) \S+ usage per |max limit to request ratio per ")
"""A LimitRange or PodSecurity admission: the same pod is refused for ever."""
INVALID = "FailedValidation"
"""In an event: the operator rejects the job's spec."""
POD_IS_WRONG = frozenset(
    {"SysctlForbidden", "AppArmor", "PodOSNotSupported", "PodOSSelectorNodeLabelDoesNotMatch", "UnsupportedPodSpec"}
)
"""Why a kubelet rejects a pod (`status.reason`) that every other one would reject too."""
OWN_LIMIT = re.compile(r"exceed\S* (?:the|its) .*limit", re.I)
USED = re.compile(rf"Container {CONTAINER} was using (\d+)([KMGT]?i?)\b.*?ephemeral-storage", re.I | re.S)
"""In the kubelet's words about an eviction."""
MUCH_BYTES = 2**30
"""A worker that wrote so much to its node's disk did it itself: our own programs write a few kilobytes there."""
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Words(NamedTuple):
    """What the platform says about a pod."""

    reason: Reason = Reason.NONE
    message: str = ""
    may_pass: bool = False
    """It only keeps the pod from starting, and may go away by itself."""


def words_of(pod: Mapping[str, Any], pull: str = "") -> Words:
    """The most telling word of the platform about a pod, and its message; `pull`: why its image could not be pulled before."""
    status = pod.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    state = container_of(pod).get("state") or {}
    ended, waiting = state.get("terminated") or {}, _waiting_first(status) or state.get("waiting") or {}
    disrupted = conditions.get("DisruptionTarget", {})
    if status.get("reason") == "Evicted":
        return Words(_of_eviction(str(status.get("message", ""))), str(status.get("message", "")))
    if reason_of(disrupted.get("reason")) is not Reason.NONE:
        return Words(reason_of(disrupted["reason"]), str(disrupted.get("message", "")))
    if reason_of(status.get("reason")) is not Reason.NONE:
        return Words(reason_of(status["reason"]), str(status.get("message", "")))
    if ended:
        own, words = _own_words(str(ended.get("message") or ""))
        return Words(own or reason_of(ended.get("reason")), words)
    if status.get("phase") == "Failed":
        return _of_rejection(status)
    if waiting.get("message") or waiting.get("reason") in REASONS:
        return _of_waiting(waiting, pull)
    return _of_pending(conditions)


def failed_pull(pod: Mapping[str, Any]) -> str | None:
    """Why its image could not be pulled; empty if the pod does not tell, None if no pull has failed."""
    status = pod.get("status") or {}
    waiting = _waiting_first(status) or (container_of(pod).get("state") or {}).get("waiting") or {}
    if waiting.get("reason") not in PULLS:
        return None
    message = str(waiting.get("message", ""))
    return "" if BARE_BACK_OFF.fullmatch(message.strip()) else message


def _waiting_first(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a container waits for that has to end before ours begins; empty if none waits with a message."""
    states = ((item.get("state") or {}).get("waiting") or {} for item in status.get("initContainerStatuses") or [])
    return next((waiting for waiting in states if waiting.get("message")), {})


def _of_eviction(message: str) -> Reason:
    """The node's, unless the worker went over a limit of its own, or filled the node's disk."""
    if OWN_LIMIT.search(message):
        return Reason.OWN_STORAGE
    used = USED.search(message)
    is_much = used and int(used[1]) * 1024 ** POWERS[used[2][:1].upper()] >= MUCH_BYTES
    return Reason.OWN_STORAGE if is_much else Reason.NODE


def _of_rejection(status: Mapping[str, Any]) -> Words:
    """A pod that failed and never ran: the kubelet rejected it (OutOfcpu, NodeAffinity …), or a container before ours failed."""
    for item in status.get("initContainerStatuses") or []:
        ended = (item.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            said = str(ended.get("message") or ended.get("reason") or "").strip()[-400:]
            return Words(
                Reason.INIT, f"{item['name']} exited with code {ended['exitCode']}{f': {said}' if said else ''}"
            )
    word = str(status.get("reason") or "")
    message = ": ".join(filter(None, (word, str(status.get("message") or ""))))
    if not message:
        return Words()
    return Words(Reason.CONFIG if word in POD_IS_WRONG else Reason.NODE, message)


def _of_waiting(waiting: Mapping[str, Any], pull: str) -> Words:
    """A container that cannot start yet."""
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if pull and BARE_BACK_OFF.fullmatch(message.strip()):
        message = f"{message}: {pull}"
    if reason == "InvalidImageName":  # no registry was asked: the name can never be one
        return Words(Reason.IMAGE, message)
    shown = f"{reason}: {message}" if message else reason
    if reason in PULLS and (reason == "ErrImageNeverPull" or NO_SUCH_IMAGE.search(message)):
        return Words(Reason.IMAGE, shown, may_pass=True)
    if reason == "CreateContainerConfigError" and not PASSING_CONFIG.search(message):
        return Words(Reason.CONFIG, shown, may_pass=True)
    return Words(Reason.NONE, shown, may_pass=True)


def _of_pending(conditions: Mapping[str, Mapping[str, Any]]) -> Words:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return Words()
    text = str(scheduled.get("message", ""))
    return Words(pending_class(text) or Reason.UNSCHEDULABLE, text, may_pass=True)


def pending_class(text: str) -> Reason:
    """The class of what keeps pods from coming; NONE if the words tell none."""
    return next((found for pattern, found in PENDING_CLASS.items() if pattern.search(text)), Reason.NONE)


def _own_words(text: str) -> tuple[Reason, str]:
    """What `pod_main` left in the termination message: a failure record, or a reason with words; else the log's last lines."""
    record = parse_record(text)
    if record:
        return Reason.NONE, f"{record.exception}: {record.message}"
    try:
        raw = json.loads(text)
        return REASONS.get(str(raw.get("reason", "")), Reason.NONE), str(raw.get("message", ""))
    except (ValueError, AttributeError):
        said = [line for line in text.splitlines() if line.strip() and not line.startswith(PREFIX)]
        return Reason.NONE, "\n".join(said)[-400:]


def container_of(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of the training's container; others may stand beside it (a proxy that a webhook adds)."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((item for item in statuses if item["name"] == CONTAINER), {})
