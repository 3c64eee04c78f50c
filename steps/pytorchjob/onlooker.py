"""What a person is told while an attempt is watched and nothing is to be done: each thing once. Used by `launcher`.

It decides nothing: that is for deadlines, `classify` and `retry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.job.snapshot import Reason
from steps.plain_text import both_ends
from steps.pytorchjob.pod_words import INVALID, REFUSED, words_of
from steps.pytorchjob.snapshot import has_conditions, is_suspended

AWAY_S = 15.0
"""An API, or an operator, that says nothing for so long is worth a sentence."""


@dataclass(slots=True)
class Onlooker:
    """Tells of one attempt."""

    name: str
    """Name of its PyTorchJob."""
    api_patience_s: float
    startup_s: float
    notice: Callable[[str], None]
    nodes: int = 1
    is_api_away: bool = False
    is_ignored: bool = False
    uids: dict[str, str] = field(default_factory=dict)
    """UIDs of the pods seen last, by name."""
    troubles: set[tuple[str, str]] = field(default_factory=set)
    """(pod, reason) that were told."""

    def hear(self, silent_s: float, error: str) -> None:
        """Take note for how long the API has said nothing."""
        if silent_s > AWAY_S and not self.is_api_away:
            self.is_api_away = True
            self.notice(
                f"the Kubernetes API has not answered for {silent_s:.0f} s ({error}): the workers go on, and it is waited for, "
                f"{self.api_patience_s:.0f} s long (cluster.api_patience_s)"
            )
        if self.is_api_away and silent_s == 0.0:
            self.is_api_away = False
            self.notice("the Kubernetes API answers again")

    def look(
        self, job: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]], age_s: float, *, hint: str = ""
    ) -> None:
        """The attempt as it is, `age_s` after it was first looked at; `hint`: what the events say about pods that do not come."""
        has_spoken = job is None or has_conditions(job) or is_suspended(job) or bool(pods) or bool(hint)
        if not has_spoken and age_s > AWAY_S and not self.is_ignored:
            self.is_ignored = True
            self.notice(
                f"the Training Operator has taken no notice of PyTorchJob {self.name} for {age_s:.0f} s; its pods come "
                "when it does: is it running? kubectl get pods -A | grep training-operator"
            )
        for pod in pods:
            name, uid = str(pod["metadata"]["name"]), str(pod["metadata"]["uid"])
            if self.uids.setdefault(name, uid) != uid and not pod["metadata"].get("deletionTimestamp"):
                self.uids[name] = uid
                self.notice(f"pod {name} was deleted from outside, and made anew")
        for pod in pods:
            self._tell_trouble(pod)
        # What nobody waits for is told by whoever decides on it; pods that have come may be gone again, at the end.
        if hint and len(self.uids) < self.nodes and not (REFUSED.search(hint) or INVALID in hint):
            self._tell(
                "", hint.partition(":")[0], f"pods of PyTorchJob {self.name} do not come ({both_ends(hint, 400)})"
            )

    def _tell_trouble(self, pod: Mapping[str, Any]) -> None:
        """What keeps a pod from starting may pass: a person reads what it is, and for how long it is waited for."""
        words, name = words_of(pod), str(pod["metadata"]["name"])
        kind = words.reason or words.message.partition(":")[0]
        if words.may_pass and words.reason is not Reason.UNSCHEDULABLE:
            self._tell(name, kind, f"pod {name} does not start ({both_ends(words.message, 400)})")

    def _tell(self, pod: str, kind: str, what: str) -> None:
        if (pod, kind) not in self.troubles:
            self.troubles.add((pod, kind))
            self.notice(
                f"{what}; this may pass, and it is waited for, up to {self.startup_s:.0f} s from the start "
                "(deadlines.startup_s)"
            )
