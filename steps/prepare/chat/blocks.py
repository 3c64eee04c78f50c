"""Contents in blocks, as Anthropic's API has them → messages with calls, results and thoughts in fields of their own. Pure.

Called by `conversations` for the messages of a row. `tool_use` becomes a call, `tool_result` a message of the role tool,
`thinking` the message's reasoning; all other blocks stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

KINDS = frozenset({"tool_use", "tool_result", "thinking"})


def unfolded(messages: Sequence[Any]) -> list[Any]:
    """The messages, each that has such blocks as one or more without."""
    if not any(isinstance(message, Mapping) and _has_blocks(message.get("content")) for message in messages):
        return list(messages)
    names = {
        block.get("id"): block.get("name")
        for message in messages
        if isinstance(message, Mapping)
        for block in _of_kind(message.get("content"), "tool_use")
    }
    return [part for message in messages for part in _unfold(message, names)]


def _unfold(message: Any, names: Mapping[Any, Any]) -> Iterator[Any]:
    """The results that a message brings, one message each; then the rest of it."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not _has_blocks(content):
        yield message
        return
    for block in _of_kind(content, "tool_result"):
        about = {"tool_call_id": block.get("tool_use_id"), "name": names.get(block.get("tool_use_id"))}
        yield {"role": "tool", "content": block.get("content"), **about}
    rest = [block for block in content if not (isinstance(block, Mapping) and block.get("type") in KINDS)]
    calls = [_call(block) for block in _of_kind(content, "tool_use")]
    thoughts = "\n".join(str(block.get("thinking", "")) for block in _of_kind(content, "thinking"))
    if rest or calls or thoughts:
        more = {"tool_calls": calls} if calls else {}
        yield {**message, "content": rest, **more, **({"reasoning_content": thoughts} if thoughts else {})}


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}


def _has_blocks(content: Any) -> TypeGuard[list[Any]]:
    return isinstance(content, list) and any(
        isinstance(block, Mapping) and block.get("type") in KINDS for block in content
    )


def _of_kind(content: Any, kind: str) -> list[Mapping[str, Any]]:
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, Mapping) and block.get("type") == kind]
