"""What is asked of the API server, and what it answered: plain values, so that checks need no cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from steps.preflight.finding import Finding, warning

LONGEST_MESSAGE = 600
ROLE = "config/cluster/rbac.yaml"


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `verb`, `resource` and `group` are its words in a Role."""

    path: str
    verb: str = "get"
    resource: str = ""
    group: str = ""
    query: Sequence[tuple[str, str]] = ()
    body: Mapping[str, Any] | None = None
    """Given: it is a POST."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON; status 0: no answer, and `message` says why."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_ok(self) -> bool:
        """2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def is_missing(self) -> bool:
        """There is no such thing."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_forbidden(self) -> bool:
        """The account may not ask (or an admission rule said no)."""
        return self.status == HTTPStatus.FORBIDDEN

    @property
    def message(self) -> str:
        """The API server's own words."""
        said = " ".join(str(self.body.get("message") or self.reason or f"status {self.status}").split())
        return said[:LONGEST_MESSAGE]

    @property
    def items(self) -> list[dict[str, Any]]:
        """Items of a list."""
        return list(self.body.get("items") or ())


def rule(verbs: Sequence[str], resource: str, group: str) -> str:
    """A rule of a Role, as it is written there."""
    return f'{{apiGroups: ["{group}"], resources: [{resource}], verbs: [{", ".join(verbs)}]}}'


def unread(check: str, question: Question, answer: Answer, lost: str) -> Finding:
    """Something that could not be looked at; `lost` says what nobody knows now."""
    if answer.is_forbidden:
        given = rule([question.verb], question.resource, question.group)
        what = f"this account may not {question.verb} {question.resource}"
        return warning(check, f"{what}: {lost} is not checked", f"grant it ({ROLE}): {given}")
    what = f"{question.verb} {question.resource} failed: {answer.message}"
    return warning(check, f"{lost} is not checked: {what}", "try again; look at the API server if it stays so")


def condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of this type; empty if there is none."""
    found = (thing.get("status") or {}).get("conditions") or ()
    return next((item for item in found if item.get("type") == kind), {})
