"""Where in a conversation's text the answers are, each with the token that ends it.

Called by `tokens`. Only what the template itself renders is asked: the conversation whole, the beginning before each answer, and,
where a template writes earlier turns anew, the same conversation with another answer in that place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from steps.prepare.chat.conversations import Conversation
from steps.prepare.chat.messages import Message
from steps.prepare.chat.template import ChatTemplate, Refused, Spans, reasoning_of

PROBES = ("Ab1 yZ", "zY2 bA")
"""Two answers that differ in their first and in their last character."""
SHOWN = 80
"""So many characters of a text are looked for."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    targets: Spans
    """(start, end) in `text` of each answer that is learned, its end-of-turn token included."""
    notes: tuple[str, ...] = ()
    """What a person should know of it: counted over all conversations."""


def render(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """The whole conversation, and the place of each answer that is learned.

    Raises:
        Refused: the template raised an error, or prints no calls or no tool results where there are some.
    """
    if conversation.text:
        return _bare(template, conversation.text)
    first: Refused | None = None
    for variant in template.variants(conversation):
        try:
            return _ended(template, _find(template, variant))
        except Refused as error:
            first = first or error
    raise first or Refused("nothing to render")


def prompt(template: ChatTemplate, conversation: Conversation) -> str:
    """What the model is asked to continue: all before the last answer that is learned; of a bare text, its first half.

    Raises:
        Refused: the template raised an error.
    """
    if conversation.text:
        return template.begin + _first_half(conversation.text.removeprefix(template.begin))
    first: Refused | None = None
    for variant in template.variants(conversation):
        try:
            return template.text(variant, variant.asked, generate=True)
        except Refused as error:
            first = first or error
    raise first or Refused("nothing to render")


def reference(conversation: Conversation, rendered: Rendered, ends: Sequence[str]) -> str:
    """What a perfect model would say: the last answer; with its calls as the template writes them; of a bare text, the rest."""
    if conversation.text:
        return conversation.text[len(_first_half(conversation.text)) :]
    if not conversation.answer.get("tool_calls"):
        content: str = conversation.answer["content"]
        return content
    start, end = rendered.targets[-1]
    answer = rendered.text[start:end].strip()
    return answer.removesuffix(next((token for token in ends if answer.endswith(token)), "")).strip()


def _first_half(text: str) -> str:
    """Up to the white space nearest behind the middle; the first half where there is none."""
    middle = len(text) // 2
    at = next((place for place in range(middle, len(text)) if text[place].isspace()), middle)
    return text[: max(1, at)]


def _bare(template: ChatTemplate, text: str) -> Rendered:
    text = text.removeprefix(template.begin)
    whole = (
        template.begin + text + ("" if text.rstrip().endswith(template.ends) else template.tokens.get("eos_token", ""))
    )
    return Rendered(whole, ((len(template.begin), len(whole)),))


def _find(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """The text and the answers' places."""
    if template.marks_answers:
        text, spans = template.marked(conversation)
        chosen = _of_learned(conversation, spans)
        if chosen:
            places = tuple((start, _with_end(template, text, end)) for start, end in chosen)
            return _checked(conversation, text, places)
    text = template.text(conversation, conversation.messages, generate=False)
    known = template.edges.find(conversation, text)
    if known and _is_in(text, _system_of(conversation)):
        return Rendered(
            text, (known,)
        )  # the very words stand between what stood around another answer: nothing is left out
    places = tuple(_place(template, conversation, text, index) for index in conversation.learned)
    return _checked(conversation, text, places)


def _of_learned(conversation: Conversation, spans: Spans) -> Spans:
    """The blocks of the answers that are learned; none if it cannot be told which those are."""
    answers = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if len(spans) == len(answers):
        return tuple(span for index, span in zip(answers, spans, strict=True) if index in conversation.learned)
    return spans if len(answers) == len(conversation.learned) else ()


def _with_end(template: ChatTemplate, text: str, end: int) -> int:
    """A block that stops before the token that ends the turn is widened by it."""
    if text[:end].rstrip().endswith(template.ends):
        return end
    return next((end + len(token) for token in template.ends if text.startswith(token, end)), end)


def _place(template: ChatTemplate, conversation: Conversation, text: str, index: int) -> tuple[int, int]:
    """Start and end of the answer at `index`: after its prompt, up to where its own rendering ends."""
    messages = conversation.messages
    prompt = template.text(conversation, messages[:index], generate=True) if index else ""
    if prompt and text.startswith(prompt):
        is_last = index + 1 == len(messages)
        own = text if is_last else template.text(conversation, messages[: index + 1], generate=False)
        turn = own[len(prompt) :].rstrip()
        if own.startswith(prompt) and turn and text.startswith(turn, len(prompt)):
            template.edges.learn(conversation, text, len(prompt))
            return len(prompt), len(prompt) + len(turn)
        shared = _shared_end(template, text, len(prompt), turn)
        if (
            shared
            and not messages[index].get("tool_calls")
            and _is_in(text[len(prompt) : shared], messages[index]["content"])
        ):
            return len(prompt), shared
    return _probe(template, conversation, text, index)


def _shared_end(template: ChatTemplate, text: str, start: int, turn: str) -> int:
    """Where the text parts from `turn`, an answer's own rendering, if an answer may end there; else 0.

    Phi-3 writes its eos_token behind a conversation's last turn, so that earlier ones end before it.
    """
    parted = template.token_at(text, start + _common_start(text[start : start + len(turn)], turn))[0]
    shared = text[start:parted].rstrip()
    return start + len(shared) if shared.endswith(template.ends) else 0


def _probe(template: ChatTemplate, conversation: Conversation, text: str, index: int) -> tuple[int, int]:
    """The place where other answers put other text: for templates that write a turn anew once another follows it."""
    messages = conversation.messages
    others, alone = [], []
    for content in PROBES:
        other: Message = {"role": "assistant", "content": content}
        others.append(template.text(conversation, (*messages[:index], other, *messages[index + 1 :]), generate=False))
        alone.append(template.text(conversation, (*messages[:index], other), generate=False))
    start = template.token_at(text, min(_common_start(text, other) for other in others))[0]
    content_end = template.token_at(text, len(text) - min(_common_end(text, other) for other in others))[1]
    content_end = max(start, content_end)
    if len(others[0]) - _common_start(*others) < len(PROBES[0]):
        raise Refused("an answer does not appear in the conversation's text")
    marker = alone[0][len(alone[0]) - _common_end(*alone) :].rstrip()
    if text.startswith(marker, content_end):
        return start, content_end + len(marker)
    return start, _shared_end(template, text, content_end, marker) or content_end


def _common_start(one: str, other: str) -> int:
    """Characters that both begin with, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _common_end(one: str, other: str) -> int:
    return _common_start(one[::-1], other[::-1])


def _ended(template: ChatTemplate, rendered: Rendered) -> Rendered:
    """Where the template ends an answer with no token, the tokenizer's own end is put behind it.

    Raises:
        Refused: the tokenizer has none.
    """
    text, spans = rendered.text, rendered.targets
    if all(text[start:end].rstrip().endswith(template.ends) for start, end in spans):
        return rendered
    eos = template.tokens.get("eos_token")
    if not eos:
        raise Refused("it ends an answer with no token, and the tokenizer has no eos_token: no end could be learned")
    places, at, whole = [], 0, ""
    for start, end in spans:
        begin = len(whole) + start - at
        whole += text[at:end] + ("" if text[start:end].rstrip().endswith(template.ends) else eos)
        places.append((begin, len(whole)))
        at = end
    note = f"the chat template ends answers with no token: {eos} was put behind them"
    return Rendered(whole + text[at:], tuple(places), (*rendered.notes, note))


def _checked(conversation: Conversation, text: str, spans: Spans) -> Rendered:
    """Refuses what lacks an answer, a call or a tool's result; names what else is not in the text."""
    for index, span in zip(conversation.learned, spans, strict=False):
        _check_answer(conversation.messages[index], text[slice(*span)])
    left_out = [] if _is_in(text, _system_of(conversation)) else ["the system turn"]
    if conversation.tools or any(len(message) > 2 or message["role"] == "tool" for message in conversation.messages):
        left_out += _lacks(conversation, text)
    lacking = [index for index in conversation.learned if not _is_in(text, _thoughts(conversation.messages[index]))]
    if lacking:
        last = lacking[-1] == conversation.learned[-1]
        left_out.append("the reasoning" if last else "the reasoning of earlier answers")
    return Rendered(text, spans, tuple(f"the chat template leaves out {part}" for part in left_out))


def _check_answer(message: Message, printed: str) -> None:
    """Refuses what is printed without its words or without its calls."""
    calls = message.get("tool_calls") or []
    if not all(_is_in(printed, str(call["function"].get("name", ""))) for call in calls):
        raise Refused("it prints no tool_calls")
    if not calls and not _is_in(printed, message["content"].rpartition("</think>")[2]):
        raise Refused("it does not print an answer as it stands")


def _system_of(conversation: Conversation) -> str:
    first = conversation.messages[0]
    return str(first["content"]) if first["role"] == "system" else ""


def _thoughts(message: Message) -> str:
    """Those beside the content, or those within it."""
    before, mark, _ = (message["content"] or "").partition("</think>")
    return reasoning_of(message) or (before.rpartition("<think>")[2] if mark else "")


def _lacks(conversation: Conversation, text: str) -> list[str]:
    """Of tools and calls; the names of what is left out."""
    left_out = []
    for message in conversation.messages:
        if message["role"] == "tool" and not _is_in(text, message["content"]):
            raise Refused("it prints no tool results")
        if message.get("tool_calls") and not _is_in(text, message["content"] or ""):
            left_out.append("the text beside a tool call")
    names = (str(tool.get("function", tool).get("name", "")) for tool in conversation.tools)
    return left_out + ([] if all(_is_in(text, name) for name in names) else ["the tools"])


def _is_in(text: str, part: str) -> bool:
    """Whether the beginning of `part` is in the text, as it is or as it stands in JSON."""
    wanted = part.strip()[:SHOWN].strip()
    return wanted in text or any(json.dumps(wanted, ensure_ascii=ascii)[1:-1] in text for ascii in (True, False))
