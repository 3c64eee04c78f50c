"""The Kubernetes shell: the few calls we make, on plain dicts, with patience for an API that is away. Knows no job's meaning.

Used by `kube_launcher` and the command line; besides `preflight` the only file that imports `kubernetes`. It creates, gets,
lists, deletes, and watches where that is allowed; it never patches. Errors become ClusterError here, without any credential.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from steps.errors import ClusterError
from steps.job.kube_words import LONGEST_MESSAGE, Found, Missing, Unready, delay_s, may_pass, refused, unreachable

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
TIMEOUT_S = (10, 30)
"""To connect, and to read."""
WATCH_S = 240
"""A watch is begun anew after this: two kinds make sixty calls an hour."""
WATCH_TIMEOUT_S = (10, 130)
"""The server sends a bookmark every minute; one that is silent for longer is gone, even if nobody closed the connection."""
DENIED_S = 60.0
"""A refused credential is tried again for so long: tokens are renewed behind our back."""
LONGEST_LOG = 2**20
"""Bytes of one answer."""
LOG_PATIENCE_S = 0.0
"""A log is worth having, and no reason to hold a recovery back: a dead node's answers 500, slowly, until the node is back."""
LONGEST_SILENCE_S = 86400.0
"""Of a log that is followed: a queue, a compilation. (The client takes no None here.)"""
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
        self.calls = 0
        """Requests made, for the measurements."""
        self._context, self._patience_s = context, patience_s
        self._notice, self._clock, self._sleep = notice, clock, sleep
        self._connect()

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a PyTorchJob; None if there is one of this name.

        Raises:
            ClusterError: refused, or the API was away for too long.
        """
        try:
            return self._json(
                f"creating PyTorchJob {manifest['metadata']['name']}",
                self._custom.create_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, PLURAL, dict(manifest)),
            )
        except Found:
            return None
        except Missing as error:
            hint = "is cluster.namespace right, and the Training Operator installed?"
            raise ClusterError(f"{error}; {hint}") from error

    def job(self, name: str) -> dict[str, Any] | None:
        """A PyTorchJob; None if there is none."""
        what = self._custom.get_namespaced_custom_object
        return self._maybe(f"reading PyTorchJob {name}", what, GROUP, VERSION, self.namespace, PLURAL, name)

    def list(self, kind: Kind, *, patience_s: float | None = None, **selector: str) -> Listing:
        """Objects of a kind, by `label_selector` or `field_selector`."""
        call, where = self._lister(kind)
        return self._list(f"listing {kind}", call, *where, patience_s=patience_s, **selector)

    def delete(self, name: str) -> None:
        """Delete a PyTorchJob in the foreground: it stays until its pods are gone. One that is gone is no error."""
        what = self._custom.delete_namespaced_custom_object
        options = client.V1DeleteOptions(propagation_policy="Foreground")
        where = (GROUP, VERSION, self.namespace, PLURAL, name)
        self._maybe(f"deleting PyTorchJob {name}", what, *where, body=options)

    def pod(self, name: str) -> dict[str, Any] | None:
        """A pod; None if there is none."""
        return self._maybe(f"reading pod {name}", self._core.read_namespaced_pod, name, self.namespace)

    def events(self, name: str) -> tuple[dict[str, Any], ...]:
        """Events about an object of this name; none where they may not be read."""
        try:
            return self._list(
                "listing events",
                *(self._core.list_namespaced_event, self.namespace),
                field_selector=f"involvedObject.name={name}",
                patience_s=0.0,
            ).items
        except ClusterError:
            return ()  # they only add words to what is known already

    def is_node_ready(self, name: str) -> bool | None:
        """Whether a node answers; None where nodes may not be read. A node that does not exist is not ready."""
        try:
            node = self._maybe(f"reading node {name}", self._core.read_node, name, patience_s=0.0)
        except ClusterError:
            return None
        conditions = (node or {}).get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def log(self, pod: str, *, lines: int) -> str:
        """The end of a pod's log; empty if there is none (not started, or gone). Nobody waits for a node that is dead.

        Raises:
            ClusterError: refused, or the API or the pod's node does not answer.
        """
        what, doing = self._core.read_namespaced_pod_log, f"reading the log of pod {pod}"
        try:
            while True:
                where = {"tail_lines": lines, "limit_bytes": LONGEST_LOG, "patience_s": LOG_PATIENCE_S}
                found = self._call(doing, what, pod, self.namespace, **where)
                if len(found) < LONGEST_LOG or lines <= 1:
                    return found.decode(errors="replace")
                lines //= 2  # the limit cuts the newest lines off, not the oldest
        except (Missing, Unready):
            return ""

    def follow_log(self, pod: str, *, lines: int) -> Iterator[str]:
        """A pod's log, line by line, until the pod ends."""
        where = {"tail_lines": lines, "follow": True, "_request_timeout": (TIMEOUT_S[0], LONGEST_SILENCE_S)}
        try:
            yield from watch.Watch().stream(self._core.read_namespaced_pod_log, pod, self.namespace, **where)
        except (ApiException, HTTPError) as error:
            raise _error(f"following the log of pod {pod}", self.namespace, error) from error

    def watch(self, kind: Kind, version: str, **selector: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Changes since `version`, for `WATCH_S` seconds: (ADDED | MODIFIED | DELETED | BOOKMARK, object).

        Raises:
            ClusterForbidden: watching is not allowed.
            ClusterError: the API went away, or has forgotten that version; list again.
        """
        call, where = self._lister(kind)
        self.calls += 1
        given = {"watch": True, "resource_version": version, "allow_watch_bookmarks": True, "timeout_seconds": WATCH_S}
        try:
            response = call(*where, **selector, **given, _preload_content=False, _request_timeout=WATCH_TIMEOUT_S)
            with contextlib.closing(response):
                for line in _lines(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # 410: that version is forgotten
                        raise ClusterError(f"watching {kind}: {event['object'].get('message', 'the watch ended')}")
                    yield event["type"], event["object"]
        except (ApiException, HTTPError) as error:
            if _status(error) == HTTPStatus.UNAUTHORIZED:
                self._connect()
            raise _error(f"watching {kind}", self.namespace, error) from error
        except (ValueError, KeyError) as error:
            raise ClusterError(f"watching {kind}: the stream broke off in the middle of a line") from error

    def _lister(self, kind: Kind) -> tuple[Callable[..., Any], tuple[str, ...]]:
        if kind == "pods":
            return self._core.list_namespaced_pod, (self.namespace,)
        return self._custom.list_namespaced_custom_object, (GROUP, VERSION, self.namespace, PLURAL)

    def _connect(self) -> None:
        self._api = load_client(self._context)
        self._core, self._custom = client.CoreV1Api(self._api), client.CustomObjectsApi(self._api)

    def _list(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> Listing:
        raw = self._json(doing, what, *where, **given)
        return Listing(tuple(raw.get("items") or ()), str(raw["metadata"].get("resourceVersion", "")))

    def _maybe(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> dict[str, Any] | None:
        try:
            return self._json(doing, what, *where, **given)
        except Missing:
            return None

    def _json(self, doing: str, what: Callable[..., Any], *where: Any, **given: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._call(doing, what, *where, **given))
        return found

    def _call(
        self, doing: str, what: Callable[..., Any], *where: Any, patience_s: float | None = None, **given: Any
    ) -> bytes:
        """One request's body; again while the API is away, for `patience_s` (None: as long as was given to this client)."""
        patience_s = self._patience_s if patience_s is None else patience_s
        begun_s, tries = self._clock(), 0
        name = what.__name__
        while True:
            self.calls += 1
            try:
                return _body(
                    getattr(self._of(what), name)(*where, **given, _preload_content=False, _request_timeout=TIMEOUT_S)
                )
            except (ApiException, HTTPError) as error:
                limit_s = patience_s
                if _status(error) == HTTPStatus.UNAUTHORIZED:  # the next call, at the latest, has a new credential
                    self._connect()
                    limit_s = min(DENIED_S, patience_s)
                if not may_pass(_status(error)) or self._clock() - begun_s >= limit_s:
                    raise _error(doing, self.namespace, error) from error
                if tries == 0:
                    self._notice(f"{_error(doing, self.namespace, error)} (trying again)")
                wait_s = delay_s(getattr(error, "headers", None), tries)
            tries += 1
            self._sleep(wait_s)

    def _of(self, what: Callable[..., Any]) -> Any:
        """The API object that a bound method belongs to, after a new login too."""
        return self._core if isinstance(getattr(what, "__self__", None), client.CoreV1Api) else self._custom


def load_client(context: str) -> client.ApiClient:
    """A client for a named context; without a name for this pod's own account, or the kubeconfig's current context.

    Raises:
        ClusterError: there is no such context, or no configuration at all.
    """
    loaded = client.Configuration()
    loaded.retries = 0  # ours alone: urllib3 would sleep for as long as a Retry-After asks, in silence
    try:
        if not context:
            with contextlib.suppress(config.ConfigException):  # not in a pod: the kubeconfig it is
                config.load_incluster_config(loaded)
                return client.ApiClient(loaded)
        config.load_kube_config(context=context or None, client_configuration=loaded)
        return client.ApiClient(loaded)
    except (config.ConfigException, OSError) as error:
        what = f"context {context!r} (cluster.context)" if context else "the current context"
        raise ClusterError(
            f"no usable Kubernetes configuration for {what}: {str(error)[:LONGEST_MESSAGE]}; set KUBECONFIG, or run "
            "`aws eks update-kubeconfig`"
        ) from error


def _body(response: Any) -> bytes:
    data: bytes = response.data
    if not 200 <= response.status < 300:
        raise _refusal(response, data)
    return data


def _refusal(response: Any, data: bytes) -> ApiException:
    error = ApiException(status=response.status, reason=response.reason)
    error.body, error.headers = data, response.headers
    return error


def _lines(response: Any) -> Iterator[bytes]:
    """Whole lines of a stream; what is left without an end is a line too. (The client's own watch loses its way at an ERROR.)"""
    if not 200 <= response.status < 300:
        raise _refusal(response, response.data)
    rest = b""
    for data in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + data).split(b"\n")
        yield from filter(None, whole)
    if rest:
        yield rest


def _status(error: Exception) -> int:
    """Of an answer; 0 if there was none."""
    return int(getattr(error, "status", None) or 0)


def _error(doing: str, namespace: str, error: Exception) -> ClusterError:
    """The project's own error."""
    if isinstance(error, ApiException):
        body = error.body or ""
        return refused(doing, namespace, status=_status(error), reason=str(error.reason or ""), body=body)
    return unreachable(doing, namespace, _cause(error))


def _cause(error: Exception) -> str:
    """The kind of a network failure; its text would repeat the address and, at times, more."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
