"""Plain text → token ids, each distinct word tokenised once: several times quicker than every text anew.

Called by `tokens`. Byte-level BPE splits a text into words by a pattern and then looks at each word alone, so a text's ids
are its words' ids in a row. `find_words` knows the patterns of today's models. For any other tokenizer, and for text with
characters on whose class two Unicode versions might differ, the tokenizer itself does the work.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CACHED_WORDS = 100_000
"""About 15 MB; when it is full it starts anew."""
CACHED_PIECES = 64
"""Between two added tokens there often stands the same: a line end, the system turn."""
ID_BYTES = 4

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_FIRST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""GPT-2's in the pieces between single digits, where white space ends as it does at the text's end."""
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN_PATTERNS = (_LLAMA3, _QWEN2)
"""Of `Split` pre-tokenizers: Llama 3, Qwen 2 and 3 (and what was made from them)."""
LATIN, SYMBOLS = range(0x250), range(0x2000, 0x2C00)
"""Characters that the patterns are translated for: Latin letters, punctuation, arrows, signs. All of them are old."""
WHITE = " \\t-\\r\\x85\\xa0\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f"
"""What Unicode calls white space, of these."""

Words = re.Pattern[str]
"""Its matches, one after another, are a text's words."""


def find_words(tokenizer: Tokenizer) -> WordEncoder | None:
    """An encoder that gives what this tokenizer gives, or None if its way is not known here."""
    from tokenizers.models import BPE

    added = tokenizer.get_added_tokens_decoder().values()
    plain_model = isinstance(tokenizer.model, BPE) and not tokenizer.model.dropout
    plain_tokens = not any(token.lstrip or token.rstrip or token.single_word for token in added)
    changed_from = _changed_from(_settings_of(tokenizer.normalizer))
    words = _words_for(_settings_of(tokenizer.pre_tokenizer) or {})
    if words is None or not changed_from or not plain_model or not plain_tokens:
        return None
    return WordEncoder(tokenizer, words, changed_from)


def _settings_of(part: Any) -> dict[str, Any] | None:
    """A part of the tokenizer as it stands in tokenizer.json, without the vocabulary beside it, which takes half a second."""
    return json.loads(part.__getstate__()) if part is not None else None


def _words_for(pre: dict[str, Any]) -> Words | None:
    """For the pre-tokenizers known here: GPT-2's, SmolLM's (digits first), Llama 3's and Qwen's."""
    *before, last = pre.get("pretokenizers", [pre])
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not last.get("use_regex", True):
        return _compile(before[0]["pattern"]["Regex"]) if len(before) == 1 and _is_known_split(before[0]) else None
    if not before:
        return _compile(_GPT2)
    if before == [{"type": "Digits", "individual_digits": True}]:
        return _compile(_DIGITS_FIRST)
    return None


def _is_known_split(step: dict[str, Any]) -> bool:
    known = step.get("type") == "Split" and step["pattern"].get("Regex") in KNOWN_PATTERNS
    return known and step.get("behavior") == "Isolated" and not step.get("invert")


def _compile(pattern: str) -> Words:
    """The pattern in the words of Python's `re`, which has no \\p{L} and \\p{N}, and a wider \\s."""
    members = {r"\p{L}": _members("L"), r"\p{N}": _members("N"), r"\s": WHITE}
    in_class = re.compile(r"(?<=\[\^)[^\]]*(?=\])")

    def bare(text: str) -> str:
        for name, inside in members.items():
            text = text.replace(name, inside)
        return text

    pattern = in_class.sub(lambda found: bare(found[0]), pattern).replace(r"\S", f"[^{WHITE}]")
    for name, inside in members.items():
        pattern = pattern.replace(name, f"[{inside}]")
    return re.compile(pattern)


def _members(category: str) -> str:
    """The inside of a character class: all of LATIN and SYMBOLS in a Unicode category."""
    found = (chr(code) for part in (LATIN, SYMBOLS) for code in part if unicodedata.category(chr(code))[0] == category)
    return "".join(map(re.escape, found))


def _changed_from(normalizer: dict[str, Any] | None) -> int:
    """The first character that the normalizer might change; 0: any."""
    if normalizer is None:
        return SYMBOLS.stop
    if normalizer["type"] in ("NFC", "NFKC"):
        return 0x80
    if normalizer["type"] == "Sequence":
        return min((_changed_from(step) for step in normalizer["normalizers"]), default=SYMBOLS.stop)
    return 0


class WordEncoder:
    """Token ids of plain texts, word by word."""

    def __init__(self, tokenizer: Tokenizer, words: Words, changed_from: int) -> None:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self._added = re.compile("(" + ("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)") + ")")
        self._words = words
        self._only_ascii = changed_from < SYMBOLS.stop
        self._foreign = re.compile(f"[^{chr(0)}-{chr(LATIN[-1])}{chr(SYMBOLS[0])}-{chr(SYMBOLS[-1])}]")
        self._ids = _WordIds(tokenizer)
        self._added_ids = {text: _id_bytes(tokenizer.encode(text, add_special_tokens=False).ids) for text in added}
        self._encode_piece = lru_cache(CACHED_PIECES)(self._join_words)

    def takes(self, text: str) -> bool:
        """Whether all its characters are ones that the pattern is translated for."""
        return text.isascii() or (not self._only_ascii and not self._foreign.search(text))

    def encode(self, text: str, cuts: Sequence[int]) -> tuple[bytes, list[int]] | None:
        """Ids as int32 bytes, and the token that begins at each character in `cuts` (ascending); None if one begins in a word."""
        found: list[bytes] = []
        places: list[int] = []
        upcoming = iter((*cuts, sys.maxsize))
        cut = next(upcoming)
        character = token = 0
        for index, piece in enumerate(self._added.split(text)):
            is_added = index % 2
            end = character + len(piece)
            while cut < end:
                inside = self._tokens_before(cut - character, "" if is_added else piece)
                if inside is None:
                    return None
                places.append(token + inside)
                cut = next(upcoming)
            ids = self._added_ids[piece] if is_added else self._encode_piece(piece)
            found.append(ids)
            character = end
            token += len(ids) // ID_BYTES
        return b"".join(found), [*places, *[token] * (len(cuts) - len(places))]

    def _join_words(self, piece: str) -> bytes:
        return b"".join(map(self._ids.__getitem__, self._words.findall(piece)))

    def _tokens_before(self, cut: int, piece: str) -> int | None:
        """Tokens of the words before character `cut`; None if it lies inside a word."""
        token = at = 0
        for word in self._words.finditer(piece):
            if at >= cut:
                break
            token += len(self._ids[word[0]]) // ID_BYTES
            at = word.end()
        return token if at == cut else None


class _WordIds(dict[str, bytes]):
    """Ids of each word seen, as the bytes of int32: joined, they are what is written to disk.

    A word not seen before goes to the tokenizer's model itself, four times quicker than through all that stands before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._model = tokenizer.model
        self._letters = _letters_of_bytes()

    def __missing__(self, word: str) -> bytes:
        if len(self) >= CACHED_WORDS:
            self.clear()
        spelled = word.encode().decode("latin-1").translate(self._letters)
        ids = self[word] = _id_bytes([token.id for token in self._model.tokenize(spelled)])
        return ids


def _letters_of_bytes() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte that does not print: in order, the alphabet's above Latin-1."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    printing = {ord(letter) for letter in alphabet}
    others = [letter for letter in alphabet if ord(letter) >= 256]
    return dict(zip((byte for byte in range(256) if byte not in printing), others, strict=True))


def _id_bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()
