"""The few calls that we make to Kubernetes, on plain dicts. It does not know what a job means.

Used by `launcher` and the command line. It creates, gets, lists and deletes, and watches where that is allowed; it never
patches. Besides `connection` and `preflight` it is the only code that imports `kubernetes`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubernetes import client, watch
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from steps.errors import ClusterError
from steps.pytorchjob.api_errors import Found, Missing, Unready
from steps.pytorchjob.connection import TIMEOUT_S, Connection, lines_of

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
WATCH_S = 12
"""A watch ends in order after this, and goes on from where it was: one call for each kind."""
WATCH_TIMEOUT_S = (10, 15)
"""A watch that is silent for longer is gone, even if nobody closed the connection (a half-open one)."""
LIST_TIMEOUT_S = (10, 10)
"""Of a list: so that a death is seen within half a minute, even if a connection of the pool is half-open too."""
LONGEST_LOG = 2**20
"""Bytes of one answer."""
LOG_PATIENCE_S = 0.0
"""A log is worth having, and no reason to hold a recovery back: a dead node's answers 500, slowly, until the node is back."""
LONGEST_SILENCE_S = 86400.0
"""How long a log that is followed may be silent: a queue, a compilation. (The client takes no None here.)"""
Kind = Literal["pytorchjobs", "pods"]


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects and the point in time that they stand for."""

    items: tuple[dict[str, Any], ...]
    version: str


class Kube:
    """One namespace of one cluster."""

    def __init__(
        self,
        namespace: str,
        *,
        context: str = "",
        patience_s: float = 1800.0,
        notice: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace = namespace
        self._connection = Connection(
            namespace, context, patience_s=patience_s, notice=notice, clock=clock, sleep=sleep
        )

    @property
    def calls(self) -> int:
        """Requests made, for the measurements."""
        return self._connection.calls

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a PyTorchJob; None if there is one of this name.

        Raises:
            ClusterError: refused, or the API was away for too long.
        """
        try:
            return self._json(
                f"creating PyTorchJob {manifest['metadata']['name']}",
                self._connection.custom.create_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, PLURAL, dict(manifest)),
            )
        except Found:
            return None
        except Missing as error:
            hint = "is cluster.namespace right, and the Training Operator installed?"
            raise ClusterError(f"{error}; {hint}") from error

    def job(self, name: str) -> dict[str, Any] | None:
        """A PyTorchJob; None if there is none."""
        what = self._connection.custom.get_namespaced_custom_object
        return self._maybe(f"reading PyTorchJob {name}", what, GROUP, VERSION, self.namespace, PLURAL, name)

    def list(self, kind: Kind, *, patience_s: float | None = None, **selector: str) -> Listing:
        """Objects of a kind, by `label_selector` or `field_selector`."""
        call, where = self._lister(kind)
        return self._list(f"listing {kind}", call, *where, patience_s=patience_s, **selector)

    def delete(self, name: str) -> None:
        """Delete a PyTorchJob in the foreground: it stays until its pods are gone. One that is gone is no error."""
        what = self._connection.custom.delete_namespaced_custom_object
        options = client.V1DeleteOptions(propagation_policy="Foreground")
        where = (GROUP, VERSION, self.namespace, PLURAL, name)
        self._maybe(f"deleting PyTorchJob {name}", what, *where, body=options)

    def pod(self, name: str) -> dict[str, Any] | None:
        """A pod; None if there is none."""
        return self._maybe(f"reading pod {name}", self._connection.core.read_namespaced_pod, name, self.namespace)

    def events(self, name: str) -> tuple[dict[str, Any], ...]:
        """Events about an object of this name; none where they may not be read."""
        try:
            return self._list(
                "listing events",
                *(self._connection.core.list_namespaced_event, self.namespace),
                field_selector=f"involvedObject.name={name}",
                patience_s=0.0,
            ).items
        except ClusterError:
            return ()  # they only add words to what is known already

    def node(self, name: str) -> dict[str, Any] | None:
        """A node, empty if there is none; None where nodes may not be read."""
        try:
            return self._maybe(f"reading node {name}", self._connection.core.read_node, name, patience_s=0.0) or {}
        except ClusterError:
            return None

    def is_node_ready(self, name: str) -> bool | None:
        """Whether a node answers; None where nodes may not be read. A node that does not exist is not ready."""
        node = self.node(name)
        if node is None:
            return None
        conditions = (node.get("status") or {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def log(self, pod: str, *, lines: int) -> str:
        """The end of a pod's log; empty if there is none (not started, or gone). Nobody waits for a node that is dead.

        Raises:
            ClusterError: refused, or the API or the pod's node does not answer.
        """
        what, doing = self._connection.core.read_namespaced_pod_log, f"reading the log of pod {pod}"
        try:
            while True:
                size: dict[str, Any] = {"tail_lines": lines, "limit_bytes": LONGEST_LOG}
                found = self._connection.call(doing, what, pod, self.namespace, patience_s=LOG_PATIENCE_S, **size)
                if len(found) < LONGEST_LOG or lines <= 1:
                    return found.decode(errors="replace")
                lines //= 2  # the limit cuts the newest lines off, not the oldest
        except (Missing, Unready):
            return ""

    def follow_log(self, pod: str, *, lines: int) -> Iterator[str]:
        """A pod's log, line by line, until the pod ends."""
        where = {"tail_lines": lines, "follow": True, "_request_timeout": (TIMEOUT_S[0], LONGEST_SILENCE_S)}
        try:
            yield from watch.Watch().stream(self._connection.core.read_namespaced_pod_log, pod, self.namespace, **where)
        except (ApiException, HTTPError) as error:
            raise self._connection.failed(f"following the log of pod {pod}", error) from error

    def watch(self, kind: Kind, version: str, **selector: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Changes since `version`, for `WATCH_S` seconds: (ADDED | MODIFIED | DELETED | BOOKMARK, object).

        Raises:
            ClusterForbidden: watching is not allowed.
            ClusterError: the API went away, or has forgotten that version; list again.
        """
        call, where = self._lister(kind)
        self._connection.calls += 1
        given = {"watch": True, "resource_version": version, "allow_watch_bookmarks": True, "timeout_seconds": WATCH_S}
        try:
            response = call(*where, **selector, **given, _preload_content=False, _request_timeout=WATCH_TIMEOUT_S)
            with contextlib.closing(response):
                for line in lines_of(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # 410: that version is forgotten
                        raise ClusterError(f"watching {kind}: {event['object'].get('message', 'the watch ended')}")
                    yield event["type"], event["object"]
        except (ApiException, HTTPError) as error:
            raise self._connection.failed(f"watching {kind}", error) from error
        except (ValueError, KeyError) as error:
            raise ClusterError(f"watching {kind}: the stream broke off in the middle of a line") from error

    def _lister(self, kind: Kind) -> tuple[Callable[..., Any], tuple[str, ...]]:
        if kind == "pods":
            return self._connection.core.list_namespaced_pod, (self.namespace,)
        return self._connection.custom.list_namespaced_custom_object, (GROUP, VERSION, self.namespace, PLURAL)

    def _list(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> Listing:
        raw = self._json(doing, what, *where, timeout_s=LIST_TIMEOUT_S, **given)
        return Listing(tuple(raw.get("items") or ()), str(raw["metadata"].get("resourceVersion", "")))

    def _maybe(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> dict[str, Any] | None:
        try:
            return self._json(doing, what, *where, **given)
        except Missing:
            return None

    def _json(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._connection.call(doing, what, *where, **given))
        return found
