"""An answer without the thinking before it. Pure.

Called by `scores` and `measure`. Reasoning models write a block of thinking and then the answer; only the answer is compared with
a reference. The block may have been opened by the prompt already.
"""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """How one family of models marks its thinking."""

    opener: str
    closer: str
    opens_in_prompt: bool = True
    """Whether a closer without an opener means that the prompt has opened the block."""


BLOCKS = (
    Block("<think>", "</think>"),  # DeepSeek R1, Qwen3, QwQ, SmolLM3, GLM, Nemotron, OLMo 3
    Block("<thinking>", "</thinking>"),
    Block("<thought>", "</thought>"),
    Block("<reasoning>", "</reasoning>"),
    Block("<seed:think>", "</seed:think>"),
    Block("[THINK]", "[/THINK]"),  # Magistral
    Block("◁think▷", "◁/think▷"),  # Kimi
    Block("<|begin_of_thought|>", "<|end_of_thought|>"),
    Block("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    Block("<|channel>thought", "<channel|>"),  # Gemma 4
    Block("<unused94>thought", "<unused95>"),  # MedGemma
    Block("Here is my thought process:", "Here is my response:", opens_in_prompt=False),  # Granite 3
)


class Parted(NamedTuple):
    """An answer's text in its two parts."""

    answer: str
    is_thinking: bool
    """The block never ended, so that there is no answer."""


def opened_by(prompt: str) -> str:
    """The opener that a prompt ends in; empty if it opens no block."""
    end = prompt.rstrip()
    return next((block.opener for block in BLOCKS if end.endswith(block.opener)), "")


def has_markers(text: str) -> bool:
    """Whether a block of thinking begins or ends in it."""
    return any(block.opener in text or block.closer in text for block in BLOCKS)


def is_part_of_a_marker(token: str) -> bool:
    """Whether a special token, as it is written, belongs to a mark of thinking."""
    return any(token in block.opener or token in block.closer for block in BLOCKS)


def after_thinking(text: str) -> Parted:
    """What stands after the last block of a text that begins with one; the text itself where it does not.

    Words between two blocks are on the way to the answer; they are the answer only where none stands behind the last block.
    """
    rest = text.lstrip()
    block = next((block for block in BLOCKS if rest.startswith(block.opener)), None) or _opened_before(rest)
    between = ""
    while block:
        _, closer, rest = rest.partition(block.closer)
        if not closer:
            return Parted("", is_thinking=True)
        block = _opened_before(rest) or _opened_in(rest)
        between = (rest.partition(block.opener)[0] if block and block.opener in rest else rest).strip() or between
    return Parted(rest.strip() or between, is_thinking=False)


def _opened_in(text: str) -> Block | None:
    """The first block that begins in the text; one that does not end, only at a line's beginning: else it is talked about."""
    found = [
        block for block in BLOCKS if block.closer in text.partition(block.opener)[2] or _begins_line(text, block.opener)
    ]
    return min(found, key=lambda block: text.index(block.opener), default=None)


def _begins_line(text: str, opener: str) -> bool:
    before, found, _ = text.partition(opener)
    return bool(found) and not before.rpartition("\n")[2].strip()


def _opened_before(text: str) -> Block | None:
    """The block that ends in the text and does not begin in it."""
    for block in BLOCKS:
        before, closer, _ = text.partition(block.closer)
        if closer and block.opens_in_prompt and block.opener not in before:
            return block
    return None
