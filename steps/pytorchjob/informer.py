"""What is known of one attempt on the cluster, kept up to date by a watch, so that a look costs no call.

Used by `launcher`. Two threads, one for the job and one for its pods: list, then watch after watch; list again when a watch
breaks. Where watching is not allowed they list every quarter of a minute. An API that is away leaves what was known, and
`silent_s` grows.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any, Literal, Protocol

from steps.errors import ClusterError, ClusterForbidden

Kind = Literal["pytorchjobs", "pods"]
POLL_S = 15.0
"""Between two lists where watching is not allowed."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
"""Between two tries to reach an API that is away."""


KINDS: tuple[Kind, ...] = ("pytorchjobs", "pods")


class ListerWatcher(Protocol):
    """The part of `client.Kube` that this needs."""

    def list(self, kind: Kind, *, patience_s: float | None = None, **selector: str) -> Any:
        """Objects of a kind."""

    def watch(self, kind: Kind, version: str, **selector: str) -> Any:
        """Changes since a version."""


class Informer:
    """The job of a name, and its pods."""

    def __init__(self, client: ListerWatcher, name: str) -> None:
        self._client = client
        self._selectors = {
            "pytorchjobs": {"field_selector": f"metadata.name={name}"},
            "pods": {"label_selector": f"training.kubeflow.org/job-name={name}"},
        }
        self._known: dict[Kind, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self._gone: set[str] = set()
        """UIDs that were seen, and then were not."""
        self._heard_s: dict[Kind, float] = dict.fromkeys(KINDS, time.monotonic())
        self._is_connected: dict[Kind, bool] = dict.fromkeys(KINDS, False)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._broken: Exception | None = None
        self.error = ""
        """Why the last call failed; empty while the API answers."""

    def start(self) -> None:
        """Look once, then keep looking from threads.

        Raises:
            ClusterError: the API refused, or was away for too long.
        """
        for kind in KINDS:
            self._replace(kind, self._list(kind).items)
        for kind in KINDS:
            threading.Thread(target=self._run, args=(kind,), name=f"watch-{kind}", daemon=True).start()

    def stop(self) -> None:
        """End the threads: each with its present call at the latest."""
        self._over.set()

    @property
    def job(self) -> dict[str, Any] | None:
        """The PyTorchJob; None if there is none."""
        with self._lock:
            return next(iter(self._known["pytorchjobs"].values()), None)

    @property
    def pods(self) -> tuple[dict[str, Any], ...]:
        """Its pods."""
        with self._lock:
            return tuple(self._known["pods"].values())

    @property
    def silent_s(self) -> float:
        """Seconds since the API could last be reached; 0 while a watch is open.

        Raises:
            ClusterError: a thread ended by a mistake of ours: nothing is seen any more.
        """
        if self._broken:
            raise ClusterError(f"nothing watches the cluster any more: {self._broken!r}") from self._broken
        now_s = time.monotonic()
        return max(0.0 if self._is_connected[kind] else now_s - self._heard_s[kind] for kind in KINDS)

    def note(self, job: dict[str, Any]) -> None:
        """Know of a job that was just made, before the watch tells."""
        with self._lock:
            self._known["pytorchjobs"].setdefault(job["metadata"]["uid"], job)

    def look_again(self) -> None:
        """See the pods as they are now: job and pods are told of by two streams, and one may lag behind the other.

        Nothing that was seen is forgotten, not even if the API refuses.
        """
        with contextlib.suppress(ClusterError):
            found = self._list("pods", patience_s=0.0).items
            with self._lock:
                for item in found:
                    if item["metadata"]["uid"] not in self._gone:
                        self._known["pods"][item["metadata"]["uid"]] = item

    def _list(self, kind: Kind, patience_s: float | None = None) -> Any:
        return self._client.list(kind, patience_s=patience_s, **self._selectors[kind])

    def _run(self, kind: Kind) -> None:
        try:
            self._follow(kind)
        except Exception as error:
            self._broken = error  # told by `silent_s`: a thread that ends in silence would look like a quiet cluster

    def _follow(self, kind: Kind) -> None:
        wait_s = FIRST_WAIT_S
        while not self._over.is_set():
            try:
                version = self._list_anew(kind)
                wait_s = FIRST_WAIT_S
                while not self._over.is_set():
                    version = self._watch_from(kind, version)
            except ClusterError as error:
                self._is_connected[kind] = False
                self.error = str(error)
                self._over.wait(random.uniform(0.7, 1.3) * wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    def _list_anew(self, kind: Kind) -> str:
        found = self._list(kind, patience_s=0.0)
        self._replace(kind, found.items)
        self._is_connected[kind] = True
        return str(found.version)

    def _watch_from(self, kind: Kind, version: str) -> str:
        """Follow one watch to its end; the version that the next one begins at. Where watching is not allowed: list later."""
        try:
            for change, item in self._client.watch(kind, version, **self._selectors[kind]):
                self._apply(kind, change, item)
                version = str(item["metadata"].get("resourceVersion") or version)
                if self._over.is_set():
                    break
        except ClusterForbidden:  # the list was answered: nothing is away
            self._over.wait(random.uniform(0.7, 1.0) * POLL_S)
            return self._list_anew(kind)
        self._heard(kind)
        self._over.wait(FIRST_WAIT_S)  # something between us and the API may end every watch at once
        return version

    def _replace(self, kind: Kind, items: Any) -> None:
        with self._lock:
            now = {item["metadata"]["uid"]: item for item in items}
            self._gone |= self._known[kind].keys() - now.keys()
            self._known[kind] = now
        self._heard(kind)

    def _apply(self, kind: Kind, change: str, item: dict[str, Any]) -> None:
        with self._lock:
            if change == "BOOKMARK":
                pass  # a sign of life
            elif change == "DELETED":
                self._known[kind].pop(item["metadata"]["uid"], None)
                self._gone.add(item["metadata"]["uid"])
            else:
                self._known[kind][item["metadata"]["uid"]] = item
        self._heard(kind)

    def _heard(self, kind: Kind) -> None:
        self._heard_s[kind] = time.monotonic()
        self.error = ""
