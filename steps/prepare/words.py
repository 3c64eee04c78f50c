"""Plain ASCII text → token ids, each distinct word tokenised once: several times quicker than every text anew.

Called by `tokens`. Byte-level BPE splits a text into words by a pattern and then looks at each word alone, so a text's ids
are its words' ids in a row. `find_splitter` knows the patterns of today's models; for any other tokenizer, and for text
where its pattern and Python's could disagree (anything but plain ASCII), the tokenizer itself does the work.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CACHED_WORDS = 200_000
"""About 40 MB; when it is full it starts anew."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN_PATTERNS = (_LLAMA3, _QWEN2)
"""Of `Split` pre-tokenizers: Llama 3, Qwen 2 and 3 (and what was made from them)."""
Splitter = Callable[[str], list[str]]


def find_splitter(tokenizer: Tokenizer) -> Splitter | None:
    """A function that cuts ASCII text into words as this tokenizer does, or None if its way is not known here."""
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    plain_model = model["type"] == "BPE" and not model.get("dropout")
    plain_tokens = not any(
        token["lstrip"] or token["rstrip"] or token["single_word"] for token in parts["added_tokens"]
    )
    if not (plain_model and plain_tokens and _changes_nothing(parts["normalizer"])):
        return None
    return _splitter_for(parts["pre_tokenizer"] or {})


def _splitter_for(pre: dict[str, Any]) -> Splitter | None:
    """For the pre-tokenizers known here: GPT-2's, SmolLM's (digits first), Llama 3's and Qwen's."""
    *before, last = pre.get("pretokenizers", [pre])
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not last.get("use_regex", True):
        return _compile(before[0]["pattern"]["Regex"]) if len(before) == 1 and _is_known_split(before[0]) else None
    if not before:
        return _compile(_GPT2)
    if before == [{"type": "Digits", "individual_digits": True}]:
        return _digits_first(_compile(_GPT2))
    return None


def _is_known_split(step: dict[str, Any]) -> bool:
    known = step.get("type") == "Split" and step["pattern"].get("Regex") in KNOWN_PATTERNS
    return known and step.get("behavior") == "Isolated" and not step.get("invert")


def _compile(pattern: str) -> Splitter:
    """x"""
    inside_class = re.compile(r"(?<=\[\^)[^\]]*(?=\])")
    bare = inside_class.sub(lambda found: found[0].replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"), pattern)
    return re.compile(bare.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII).findall


def _digits_first(split: Splitter) -> Splitter:
    digit = re.compile("([0-9])")

    def split_around(text: str) -> list[str]:
        pieces = enumerate(digit.split(text))
        return [word for index, piece in pieces for word in ([piece] if index % 2 else split(piece))]

    return split_around


def _changes_nothing(normalizer: dict[str, Any] | None) -> bool:
    """Whether ASCII text comes out of the normalizer as it went in."""
    if normalizer is None or normalizer["type"] in ("NFC", "NFKC"):
        return True
    return normalizer["type"] == "Sequence" and all(map(_changes_nothing, normalizer["normalizers"]))


class WordEncoder:
    """Token ids of plain ASCII texts, word by word."""

    def __init__(self, tokenizer: Tokenizer, split: Splitter) -> None:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self._added = re.compile("(" + ("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)") + ")")
        self._split = split
        self._ids = _WordIds(tokenizer)

    def encode(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Ids, and the first token at or after each character position in `cuts`; None if a cut lies inside a word."""
        words = list(self._words(text))
        groups = [self._ids[word] for word in words]
        ends = list(accumulate(map(len, words), initial=0))
        places = []
        for cut in cuts:
            word = bisect_left(ends, cut)
            if ends[word] != cut:
                return None
            places.append(sum(map(len, groups[:word])))
        return list(chain.from_iterable(groups)), places

    def _words(self, text: str) -> Iterator[str]:
        for index, piece in enumerate(self._added.split(text)):
            if index % 2:
                yield piece
            elif piece:
                yield from self._split(piece)


class _WordIds(dict[str, tuple[int, ...]]):
    """Ids of each word seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= CACHED_WORDS:
            self.clear()
        ids = self[word] = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return ids
