"""The connection to a Kubernetes API: credentials, patience while it is away, its errors as ClusterError, without any credential.

Used by `client`, which knows the calls.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes import client, config
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from steps.errors import ClusterError
from steps.pytorchjob.api_errors import LONGEST_MESSAGE, delay_s, is_denied, may_pass, refused, unreachable

TIMEOUT_S = (10, 30)
"""Limits to connect, and to read."""
DENIED_S = 300.0
"""A refused credential is tried again for so long, from the first refusal on: tokens are renewed behind our back."""


class Connection:
    """Logged in to one cluster, for work in one namespace."""

    def __init__(
        self,
        namespace: str,
        context: str,
        *,
        patience_s: float,
        notice: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.calls = 0
        """Requests made."""
        self._namespace, self._context, self._patience_s = namespace, context, patience_s
        self._notice, self._clock, self._sleep = notice, clock, sleep
        self._login()

    def _login(self) -> None:
        self.api = load_client(self._context)
        self.core, self.custom = client.CoreV1Api(self.api), client.CustomObjectsApi(self.api)

    def call(
        self,
        doing: str,
        what: Callable[..., Any],
        *where: Any,
        patience_s: float | None = None,
        timeout_s: tuple[float, float] = TIMEOUT_S,
        **given: Any,
    ) -> bytes:
        """One request's body; again while the API is away, for `patience_s` (None: as long as was given to this connection).

        Raises:
            ClusterError: refused, or away for longer.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        begun_s, tries = self._clock(), 0
        denied_s: float | None = None
        name = what.__name__
        while True:
            self.calls += 1
            try:
                return _body(
                    getattr(self._of(what), name)(*where, **given, _preload_content=False, _request_timeout=timeout_s)
                )
            except (ApiException, HTTPError) as error:
                told = self.failed(doing, error)
                now_s = self._clock()
                denied_s = (now_s if denied_s is None else denied_s) if _is_denied(error) else None
                since_s, limit_s = (begun_s, patience_s) if denied_s is None else (denied_s, min(DENIED_S, patience_s))
                if not may_pass(_status(error), getattr(error, "body", "")) or now_s - since_s >= limit_s:
                    raise told from error
                if tries == 0:
                    self._notice(f"{told} (trying again)")
                wait_s = delay_s(getattr(error, "headers", None), tries)
            tries += 1
            self._sleep(wait_s)

    def _of(self, what: Callable[..., Any]) -> Any:
        """The API object that a bound method belongs to, after a new login too."""
        return self.core if isinstance(getattr(what, "__self__", None), client.CoreV1Api) else self.custom

    def failed(self, doing: str, error: ApiException | HTTPError) -> ClusterError:
        """The project's own error; after a refused credential the next call has a new one, where there is one."""
        if _is_denied(error):
            with contextlib.suppress(ClusterError):  # a kubeconfig that is just being written, say: the old login stays
                self._login()
        if isinstance(error, ApiException):
            body = error.body or ""
            reason = str(error.reason or "")
            return refused(doing, self._namespace, status=_status(error), reason=reason, body=body)
        return unreachable(doing, self._namespace, _cause(error))


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


def lines_of(response: Any) -> Iterator[bytes]:
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
    """HTTP status of the answer; 0 if there was none."""
    return int(getattr(error, "status", None) or 0)


def _is_denied(error: Exception) -> bool:
    return is_denied(_status(error), getattr(error, "body", ""))


def _cause(error: Exception) -> str:
    """The kind of a network failure; its text would repeat the address and, at times, more."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
