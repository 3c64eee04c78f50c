"""One message of a source row → a message as chat templates take it, and whether its words are learned. Pure.

Called by `conversations`. All fields that the source gives go on to the template: tool calls, reasoning, names, whatever else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""`role` and `content`, and whatever else a template may print, as transformers' `apply_chat_template` takes it."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
}
CALLING = ("function_call", "tool_call")
"""Roles of turns that are a call and nothing else."""
USUAL_ROLES = ("user", "assistant", "system")
WEIGHTS = ("weight", "loss_weight", "loss_mask", "train", "training", "trainable", "loss", "learn", "train_on_turn")
"""What data sets call the switch that says whether a message is learned."""
MASKS = ("masked", "is_masked")
"""What they call the opposite."""
CONTENTS = ("content", "value", "text", "parts")
HANDLED = frozenset({"role", "from", *CONTENTS, "tool_calls", "function_call", "mask", *WEIGHTS, *MASKS})
TEXT_TYPES = frozenset({"text", "value", "input_text", "output_text"})
TEXT_KEYS = ("text", "value", "content")
"""Where a part of a content keeps its words."""
PLAIN = {"role", "content"}


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a row gives no conversation; rows are counted by this text, so it names no single value of the row."""

    reason: str


def to_message(raw: object) -> Message | Skip:
    """The message as templates take it: role, content as text, arguments of calls as objects, all other fields as given."""
    if type(raw) is dict and raw.keys() == PLAIN and raw["role"] in USUAL_ROLES and type(raw["content"]) is str:
        content = to_text(raw["content"])
        return content if isinstance(content, Skip) else {"role": raw["role"], "content": content}
    if not isinstance(raw, Mapping):
        return Skip("a message is not an object with role and content")
    given = raw.get("role") or raw.get("from")
    if not given:
        return Skip("a message has no role")
    role = ROLES.get(str(given).lower())
    if role is None:
        return Skip(f"a message has the role {str(given)[:40]!r}; known are {', '.join(ROLES)}")
    content = to_text(_parts(next((raw[key] for key in CONTENTS if raw.get(key) is not None), None)))
    if isinstance(content, Skip):
        return content
    calls = _calls(raw, content if str(given).lower() in CALLING else "")
    if isinstance(calls, Skip):
        return calls
    more = {str(key): value for key, value in raw.items() if key not in HANDLED and not is_missing(value)}
    message: Message = {"role": role, "content": content, **more}
    if calls:
        message["tool_calls"] = calls
        if str(given).lower() in CALLING:
            message["content"] = ""
    return message if _is_unicode(more) and _is_unicode(calls) else Skip(SURROGATE)


SURROGATE = "a text holds half a surrogate pair, which is no valid Unicode"


def weight_of(raw: object) -> bool | Skip:
    """Whether an answer is learned: it is unless its weight is 0, its `train` false, or its `masked` true."""
    if not isinstance(raw, Mapping) or raw.keys() == PLAIN:
        return True
    if not is_missing(raw.get("mask")):
        return Skip("a message has a mask, which some read as learned and some as not: call it weight, 1 or 0")
    for name in (*WEIGHTS, *MASKS):
        value: Any = raw.get(name)
        if is_missing(value) or value == "":
            continue
        try:
            number = float({"true": 1, "false": 0}.get(str(value).lower(), value))
        except (TypeError, ValueError):
            return Skip(f"a message's {name} is neither a number nor true or false")
        if number not in (0, 1):
            return Skip(f"a message's {name} is neither 0 nor 1: a message is learned or not (round it)")
        return bool(number) != (name in MASKS)
    return True


def is_missing(value: object) -> bool:
    """Nothing: null, or the not-a-number that data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def to_text(value: Any) -> str | Skip:
    """A content as text: strings as they are, text parts joined, numbers and objects as JSON, nothing as ''."""
    if isinstance(value, str):
        return value if value.isascii() or _is_unicode(value) else Skip(SURROGATE)
    if is_missing(value):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return Skip("a column holds bytes that are no UTF-8 text")
    if isinstance(value, list) and _are_parts(value):
        return _joined([{"type": "text", "text": part} if isinstance(part, str) else part for part in value])
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if _is_unicode(text) else Skip(SURROGATE)


def content_of(value: Any) -> Any:
    """What a system turn in a column of its own says: text, text parts, or a message that holds them."""
    inner = value.get("parts", value.get("content")) if isinstance(value, Mapping) else None
    return _parts(value if inner is None else inner)


def _parts(value: Any) -> Any:
    """A message's content; text parts that are alone, or do not say their type, as the usual parts; an empty list is nothing."""
    if isinstance(value, Mapping) and str(value.get("type")) in TEXT_TYPES:
        return [value]
    if not isinstance(value, list):
        return value
    is_bare = all(isinstance(part, Mapping) and len(part) == 1 and part.keys() <= set(TEXT_KEYS) for part in value)
    return [{"type": "text", **part} for part in value] or None if is_bare else value


def _are_parts(value: list[Any]) -> bool:
    """Whether these are parts of a content, which may have strings among them: a list of strings alone is a list."""
    kinds = {"string" if isinstance(part, str) else isinstance(part, Mapping) and "type" in part for part in value}
    return True in kinds and False not in kinds


def _joined(parts: list[Mapping[str, Any]]) -> str | Skip:
    kinds = {str(part["type"]) for part in parts} - TEXT_TYPES
    if kinds:
        return Skip(f"a content has parts that are not text ({', '.join(sorted(kinds))[:60]})")
    found = [next((part[key] for key in TEXT_KEYS if not is_missing(part.get(key))), "") for part in parts]
    texts = [to_text(text.get("value") if isinstance(text, Mapping) and "value" in text else text) for text in found]
    return next((text for text in texts if isinstance(text, Skip)), "".join(map(str, texts)))


def _is_unicode(value: Any) -> bool:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _calls(raw: Mapping[str, Any], spoken: str) -> list[dict[str, Any]] | Skip:
    """The message's tool calls in today's form, from `tool_calls`, the older `function_call`, or sharegpt's turn of that name."""
    given = raw.get("tool_calls")
    if is_missing(given) and not is_missing(raw.get("function_call")):
        given = [raw["function_call"]]
    if is_missing(given) and spoken:
        given = parsed(spoken)
        if isinstance(given, str):
            return Skip("a function_call is not valid JSON")
    given = parsed(given)
    listed = given if isinstance(given, list) else [given] if given else []
    if not all(isinstance(call, Mapping) for call in listed):
        return Skip("a tool call is not an object with name and arguments")
    calls = [_call(call) for call in listed]
    if any(_is_broken(call["function"]["arguments"]) for call in calls):
        return Skip("the arguments of a tool call are not valid JSON")
    return calls


def _is_broken(arguments: Any) -> bool:
    """Text that begins as JSON and is none."""
    return isinstance(arguments, str) and arguments.lstrip().startswith(("{", "["))


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """{type, function: {name, arguments}}; arguments that came as JSON text become what the text says."""
    wrapped = call if isinstance(call.get("function"), Mapping) else {"function": call}
    function = {key: value for key, value in wrapped["function"].items() if not is_missing(value)}
    arguments = parsed(function.get("arguments", function.pop("parameters", {})))
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    more = {key: value for key, value in wrapped.items() if key != "function" and not is_missing(value)}
    return {"type": "function", **more, "function": {**function, "arguments": arguments}}


def parsed(value: Any) -> Any:
    """What JSON text that stands for an object or a list says; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def to_tools(value: Any) -> list[dict[str, Any]] | Skip:
    """The functions that a row offers, each as {type, function}; they may come as JSON text or bare."""
    value = parsed(value)
    if is_missing(value) or value in ("", []):
        return []
    listed = value if isinstance(value, list) else [value]
    tools = [parsed(tool) for tool in listed]
    if not all(isinstance(tool, dict) for tool in tools) or not _is_unicode(tools):
        return Skip("its tools are not a list of JSON objects")
    return [_tool(_present(tool)) for tool in tools]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """{type, function}; Anthropic's `input_schema` are the parameters."""
    if "name" not in tool or "function" in tool:
        return tool
    schema = {"parameters": tool["input_schema"]} if "input_schema" in tool else {}
    function = {key: value for key, value in tool.items() if key not in ("input_schema", "type")}
    return {"type": "function", "function": {**function, **schema}}


def _present(value: Any) -> Any:
    """Without the nulls that Parquet puts where another row has a field."""
    if isinstance(value, Mapping):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
