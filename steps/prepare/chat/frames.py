"""What a chat template writes around the contents of a conversation, found once for each sequence of roles.

Called by `template`. The template is run once with stand-ins for the contents. Where it only prints them, whole or trimmed, what
it wrote around them is the frame of every conversation with these roles, and filling it is ten times quicker than running Jinja.
Where it does anything else with a content (searches, compares, splits it), there is no frame, and Jinja renders every
conversation. Two nets catch that: `only_prints` knows each construct that the template may hold, and a stand-in refuses to be
looked into.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2.nodes import Node, Template

NAME = "content-stand-in"
STAND_IN = re.compile(rf" \0{NAME} (\d+)( trimmed)?\0 ")
"""Spaces show whether something trimmed it unseen, NUL whether something escaped it: then it no longer looks like this."""

# fmt: off - names of the classes in jinja2.nodes
CONSTRUCTS = frozenset(
    {
        "Template",
        "Output",
        "TemplateData",
        "For",
        "If",
        "CondExpr",
        "Assign",
        "Break",
        "Continue",
        "Name",
        "NSRef",
        "Const",
        "List",
        "Dict",
        "Pair",
        "Keyword",
        "Getattr",
        "Getitem",
        "Slice",
        "Compare",
        "Operand",
        "Not",
        "And",
        "Or",
        "Add",
        "Sub",
        "Neg",
        "Mod",
        "Filter",
        "Test",
        "Call",
    }
)
# fmt: on
FILTERS = frozenset({"trim", "string", "tojson", "length", "list", "first", "last", "default"})
TESTS = frozenset(
    {"defined", "undefined", "none", "string", "mapping", "iterable", "true", "false", "boolean", "number"}
)


def only_prints(template: Template) -> bool:
    """Whether the template is made of constructs that pass stand-ins on, or that they notice."""
    return all(_is_known(node) for node in _walk(template))


def _walk(node: Node) -> list[Node]:
    return [node, *(below for child in node.iter_child_nodes() for below in _walk(child))]


def _is_known(node: Any) -> bool:
    """Kept out: whatever makes plain text of a stand-in (`~`, `%`, join, macros), or looks for it in another text."""
    match _kind(node):
        case "Filter":
            return node.name in FILTERS
        case "Test":
            return node.name in TESTS
        case "Call":
            return _kind(node.node) == "Name" or getattr(node.node, "attr", "") == "strip"
        case "Mod":
            return _kind(node.right) == "Const"
        case "Compare" if {operand.op for operand in node.ops} & {"in", "notin"}:
            return _kind(node.expr) == "Const"
        case kind:
            return kind in CONSTRUCTS


def _kind(node: Node) -> str:
    return type(node).__name__


class LooksInside(Exception):
    """The template does more with a content than print it."""


def _refuse(*_: object) -> NoReturn:
    raise LooksInside


class StandIn(str):
    """Text with a content's place in it. It may be printed, joined and, alone, trimmed; it is true, as what is not blank."""

    __slots__ = ()
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse
    __contains__ = __getitem__ = __iter__ = __len__ = __mod__ = __rmod__ = __mul__ = __rmul__ = _refuse

    def __bool__(self) -> bool:
        return True

    def __add__(self, other: str) -> StandIn:
        return StandIn(f"{self!s}{other!s}")

    def __radd__(self, other: str) -> StandIn:
        return StandIn(f"{other!s}{self!s}")

    def __getattribute__(self, name: str) -> Any:
        if name == "strip":
            return lambda chars=None: _refuse() if chars else _trimmed(str(self))
        return super().__getattribute__(name) if name.startswith("__") else _refuse()


def _trimmed(text: str) -> StandIn:
    alone = STAND_IN.fullmatch(text)
    if not alone:
        raise LooksInside
    return StandIn(f" \0{NAME} {alone[1]} trimmed\0 ")


@dataclass(frozen=True, slots=True)
class Frame:
    """A conversation's text but for the contents."""

    start: str
    rest: tuple[tuple[int, bool, str], ...]
    """(the turn whose content stands here, whether it is trimmed, the text after it)."""

    def fill(self, contents: Sequence[str]) -> str:
        """The text of a conversation."""
        parts = [self.start]
        for turn, trimmed, after in self.rest:
            parts += (contents[turn].strip() if trimmed else contents[turn]), after
        return "".join(parts)


def find_frame(render: Callable[[list[dict[str, str]]], str], roles: Sequence[str]) -> Frame | None:
    """The frame of conversations with these roles, none of whose contents is blank; None: there is none."""
    messages = [{"role": role, "content": StandIn(f" \0{NAME} {turn}\0 ")} for turn, role in enumerate(roles)]
    try:
        start, *found = STAND_IN.split(render(messages))
    except LooksInside:
        return None
    rest = tuple(
        (int(turn), bool(trimmed), after)
        for turn, trimmed, after in zip(found[::3], found[1::3], found[2::3], strict=True)
    )
    altered = any(NAME in text for text in (start, *found[2::3]))
    return None if altered else Frame(start, rest)
