"""What a chat template writes around the last answer of plain conversations: learned from one, looked for in the next. Pure.

Called by `answers`, for speed: a conversation whose text has the very same before and after its answer needs not be rendered
again only to see where the answer begins. Anything else than the very same is left to the template.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.prepare.chat.conversations import Conversation

MOST_SHAPES = 512
"""Sequences of roles remembered."""
LOOKED = 24
"""So many characters of the question's end must stand before the answer's header."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """The text from the end of the last question to the end of the conversation, but for the answer."""

    header: str
    """From the question's end to the end of what the model is prompted with."""
    opening: str
    """From there to the answer's words: an empty block for thoughts, say."""
    closing: str
    """All after the answer's words."""


class Edges:
    """What was seen around the last answer, for each sequence of roles."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], _Edge | None] = {}

    def find(self, conversation: Conversation, text: str) -> tuple[int, int] | None:
        """Start and end of the last answer; None if it must be asked for."""
        edge = self._seen.get(_roles(conversation)) if _is_plain(conversation) else None
        if edge is None:
            return None
        asked, answer = (message["content"].strip() for message in conversation.messages[-2:])
        tail = f"{asked[-LOOKED:]}{edge.header}{edge.opening}{answer}{edge.closing}"
        if not answer or not asked or not text.endswith(tail):
            return None
        return len(text) - len(edge.opening) - len(answer) - len(edge.closing), len(text.rstrip())

    def learn(self, conversation: Conversation, text: str, start: int) -> None:
        """Remember what stands around the answer that begins at `start`."""
        roles = _roles(conversation)
        if roles in self._seen or not _is_plain(conversation):
            return
        if len(self._seen) >= MOST_SHAPES:
            self._seen.clear()
        asked, answer = (message["content"].strip() for message in conversation.messages[-2:])
        _, found, header = text[:start].rpartition(asked)
        opening, printed, closing = text[start:].partition(answer)
        if asked and answer and found and printed:
            self._seen[roles] = _Edge(header, opening, closing)


def _roles(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message["role"] for message in conversation.messages)


def _is_plain(conversation: Conversation) -> bool:
    """One learned answer, the last message, right after a question; nothing but roles and contents."""
    messages = conversation.messages
    return (
        len(messages) > 1
        and conversation.learned == (len(messages) - 1,)
        and not conversation.tools
        and not conversation.arguments
        and all(len(message) == 2 for message in messages)
        and messages[-2]["role"] == "user"
    )
