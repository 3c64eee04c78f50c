"""Rows that bring a chat template's marks along: what is already written out is not written out a second time in silence.

Called by `tokens` before a conversation is rendered. Which tokens begin a turn and which end an answer is seen in what the
model's own template writes; the marks of other templates are known by name, and only told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from steps.prepare.chat.conversations import Conversation, of_turns
from steps.prepare.chat.template import ChatTemplate, Refused

KNOWN = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|assistant|>",
    "[/INST]",
    "</s>",
    "### Response:",
    "### Assistant:",
)
"""Marks of templates in use."""


class WrittenOut(Exception):
    """A message is nothing but the template's own marks, or holds turns in them; the message of this says what to do."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a model's own template writes around messages."""

    turns: tuple[str, ...]
    """Tokens that begin turns: added ones alone, since other marks may be anybody's words."""
    ends: tuple[str, ...]
    """What ends an answer."""
    firsts: frozenset[str]
    """The characters that any mark begins with: most messages hold none of them, and are looked at no further."""

    @classmethod
    def of(cls, template: ChatTemplate) -> Marks:
        """Those that the template writes around one question and its answer."""
        plain = of_turns(("user", "Ab1"), ("assistant", "yZ2"))
        try:
            text = template.text(plain, plain.messages, generate=False)
        except Refused:
            text = ""
        ends = {*template.usual_ends, template.tokens.get("eos_token", "")}
        before = text.partition("yZ2")[0].removeprefix(template.tokens.get("bos_token", ""))
        turns = {found[0] for found in template.added.finditer(before)} - ends
        ends = set(filter(None, ends))
        firsts = frozenset(mark[0] for mark in (*turns, *ends, *KNOWN))
        return cls(tuple(sorted(turns)), tuple(sorted(ends, key=len, reverse=True)), firsts)

    def taken_off(self, conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation with answers that bring no end of their own; and what to say of it.

        Raises:
            WrittenOut: a message holds whole turns, or an answer nothing but its end.
        """
        if conversation.text:
            return conversation, tuple(self._of_text(conversation.text))
        if not any(first in message["content"] for message in conversation.messages for first in self.firsts):
            return conversation, ()
        notes: list[str] = []
        messages = list(conversation.messages)
        for index, message in enumerate(messages):
            content = message["content"]
            if found := next((mark for mark in self.turns if mark in content), ""):
                raise WrittenOut(
                    f"a message that is already written out in the chat template's own marks ({found}): give question and answer "
                    "without them, as columns or messages, or all of it as one column text"
                )
            if message["role"] == "assistant" and content.rstrip().endswith(self.ends):
                messages[index] = {**message, "content": self._without_end(content)}
                if not messages[index]["content"].strip() and not message.get("tool_calls"):
                    raise WrittenOut("no answer")
                notes.append("an answer brings the token that ends it: it stands there once")
            notes += [_foreign(mark) for mark in KNOWN if mark in messages[index]["content"]]
        return (
            (replace(conversation, messages=tuple(messages)), tuple(dict.fromkeys(notes)))
            if notes
            else (conversation, ())
        )

    def _of_text(self, text: str) -> Iterator[str]:
        found = next((mark for mark in (*self.turns, *KNOWN) if mark in text), "")
        if found:
            yield f"the text is a conversation already written out ({found}): it is learned whole, the questions too"

    def _without_end(self, content: str) -> str:
        while found := next((end for end in self.ends if content.rstrip().endswith(end)), ""):
            content = content.rstrip().removesuffix(found)
        return content


def _foreign(mark: str) -> str:
    return f"a message holds a mark of some chat template ({mark}): it is learned as text"
