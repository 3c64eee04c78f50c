"""What an answer of the Kubernetes API means: whether to try again, when, and the words for a person. Pure; used by `client`.

It takes status, text and headers, never a request, so that no credential can get into a message.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from http import HTTPStatus

from steps.errors import ClusterError, ClusterForbidden
from steps.plain_text import command

LONGEST_MESSAGE = 400
PASSING = frozenset({429, 500, 502, 503, 504})
"""Too many requests, and servers (or webhooks) that are away for a moment."""
LONGEST_ASKED_S, LONGEST_WAIT_S = 60.0, 30.0
"""Between two tries: as the server asks, and by ourselves."""

ANONYMOUS = '"system:anonymous"'
"""The user that Kubernetes sees where a request carries no login."""


class Missing(ClusterError):
    """404."""


class Found(ClusterError):
    """409: there is one."""


class Unready(ClusterError):
    """400: the container has no log yet."""


def may_pass(status: int | None, body: str | bytes = "") -> bool:
    """Whether to try again: no answer at all, a server that is away, a credential that may be renewed."""
    return not status or status in PASSING or is_denied(status, body)


def is_denied(status: int | None, body: str | bytes = "") -> bool:
    """Whether the login was missing or refused: 401, or 403 for nobody (a program that fetches the token failed for a while)."""
    is_nobody = status == HTTPStatus.FORBIDDEN and ANONYMOUS in _message(body, "")
    return status == HTTPStatus.UNAUTHORIZED or is_nobody


def delay_s(headers: Mapping[str, str] | None, tries: int) -> float:
    """As the server asks, else growing from half a second to half a minute; never the same for two launchers."""
    asked = (headers or {}).get("Retry-After", "")
    if asked.isdigit():
        return min(float(asked), LONGEST_ASKED_S)
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, 2.0 ** min(tries, 16))


def unreachable(doing: str, namespace: str, cause: str) -> ClusterError:
    """The error of a request that got no answer."""
    return ClusterError(
        f"{doing} in namespace {namespace}: the Kubernetes API cannot be reached ({cause}); check network and KUBECONFIG"
    )


def refused(doing: str, namespace: str, *, status: int, reason: str, body: str | bytes) -> ClusterError:
    """The error of an answer, with what the API said and what to do."""
    where, said = f"{doing} in namespace {namespace}", _message(body, reason)
    match status:
        case HTTPStatus.NOT_FOUND:
            return Missing(f"{where}: {said}")
        case HTTPStatus.CONFLICT:
            return Found(f"{where}: {said}")
        case HTTPStatus.BAD_REQUEST if "log" in doing:
            return Unready(f"{where}: {said}")
        case HTTPStatus.FORBIDDEN if is_denied(status, body):
            return ClusterError(
                f"{where}: the API saw no login ({said}): does the program that fetches the token (KUBECONFIG's exec entry) "
                f"work? Log in again, then `{command('resume')}`"
            )
        case HTTPStatus.FORBIDDEN:
            return ClusterForbidden(f"{where}: {said}; config/cluster/rbac.yaml has what is needed")
        case HTTPStatus.UNAUTHORIZED:
            return ClusterError(
                f"{where}: the credential was refused ({said}); log in again, then `{command('resume')}`"
            )
        case _:
            return ClusterError(f"{where}: the API answered {status}: {said}")


def _message(body: str | bytes, reason: str) -> str:
    """What the API server says, without anything of the request."""
    try:
        text = json.loads(body or "{}").get("message", "")
    except (ValueError, AttributeError):
        text = ""
    return str(text or reason or "no reason given")[:LONGEST_MESSAGE]
