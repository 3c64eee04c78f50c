"""Which samples are held out: by their prompts and the seed alone, whatever the order of the rows. Pure.

Called by `samples` (one sample at a time) and `stage` (all of them). The same question always falls on the same side, with
whatever answer; a question is the same whatever white space stands in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steps.errors import DataError
from steps.plain_text import counted
from steps.prepare.chat.conversations import Conversation
from steps.prepare.chat.messages import Message
from steps.prepare.read.files import Side
from steps.prepare.share import Share

BLOCK = 65_536
"""Keys compared at a time."""


def keys_of(conversation: Conversation) -> tuple[bytes, bytes]:
    """16 bytes that stand for the conversation's content, and 8 for what comes before its last answer that is learned.

    Where no question comes before it, as before a greeting, it stands for itself.
    """
    digest = hashlib.blake2b(digest_size=16)
    if conversation.text:
        digest.update(conversation.text.encode())
        return digest.digest(), digest.digest()[:8]
    prompt = hashlib.blake2b(digest_size=8)
    last = conversation.learned[-1]
    for message in conversation.messages[:last]:
        digest.update(_bytes_of(message))
        prompt.update(_bytes_of({**message, "content": " ".join(message["content"].split())}))
    if conversation.tools or conversation.arguments:
        more = _ENCODE([conversation.tools, conversation.arguments]).encode()
        digest.update(more)
        prompt.update(more)
    for message in conversation.messages[last:]:
        digest.update(_bytes_of(message))
    digest.update(repr(conversation.learned).encode())
    has_question = any(message["role"] == "user" for message in conversation.messages[:last])
    return digest.digest(), prompt.digest() if has_question else digest.digest()[:8]


_ENCODE = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str).encode


def _bytes_of(message: Message) -> bytes:
    """The same for equal messages only."""
    if len(message) > 2:
        return b"{" + _ENCODE(message).encode()
    content: bytes = message["content"].encode()
    return f"{message['role']} {len(content)} ".encode() + content


def position(prompt: bytes, seed: int, between: float, side: Side = "") -> float:
    """Where a sample lies in [0, 1), by what comes before its answer; the lowest ones are held out.

    So a question with two answers is never on both sides. A sample whose source names its side is put below `between`, or not.
    """
    digest = hashlib.blake2b(prompt, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    free = (int.from_bytes(digest, "little") >> 11) / 2**53
    if side == "validation":
        return free * between
    if side == "train":
        return between + free * (1 - between)
    return free


def compare(keys: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.bool_], str]:
    """True at the first occurrence of each key; and a digest of them all, whatever their order."""
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(keys), dtype=bool)
    digest = hashlib.sha256()
    for begin in range(0, len(order), BLOCK):  # all of them at once would be half of what preparing keeps in memory
        at = order[max(0, begin - 1) : begin + BLOCK]
        ordered = keys[at]
        is_first[at[1:]] = ordered[1:] != ordered[:-1]
        digest.update(ordered[min(begin, 1) :].data.cast("B"))
    return is_first, digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Keys:
    """What divides the samples, one each per sample, in the source's order."""

    contents: npt.NDArray[np.void]
    """16 bytes that stand for the sample's content."""
    prompts: npt.NDArray[np.uint64]
    """The same for what comes before its last answer."""
    positions: npt.NDArray[np.float64]
    """Where it lies in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Portion:
    """The samples of one source: those from `first` up to `end`."""

    first: int
    end: int
    share: Share
    """Of them that is held out."""
    name: str = ""
    score: str = ""


@dataclass(frozen=True, slots=True)
class Division:
    """The samples of each side, duplicates left out."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    """In an order that depends on content and seed alone."""
    duplicates: int
    leaked: int
    """Training samples left out because their question is a held-out one."""
    fingerprint: str
    """Of all samples' contents."""


def divide(keys: Keys, portions: Sequence[Portion]) -> Division:
    """Both sides; of each source at least one sample is held out, and at least one is not.

    Raises:
        DataError: fewer than two samples in a source; one question only; no question left to train on.
    """
    is_first, fingerprint = compare(keys.contents)
    distinct = np.flatnonzero(is_first)
    positions, prompts = keys.positions[distinct], keys.prompts[distinct]
    if len(distinct) > 1 and (prompts == prompts[0]).all():
        raise DataError(
            f"all {len(distinct):,} distinct samples have one question: whichever is held out, training knows it; give other "
            "questions too, or the answers alone as bare texts (--columns text=COLUMN)"
        )
    chosen = np.zeros(len(distinct), dtype=bool)
    for portion in portions:
        here = slice(*np.searchsorted(distinct, [portion.first, portion.end]))
        chosen[here] = _held_out_of(portion, positions[here], prompts[here])
    leaked = ~chosen & np.isin(prompts, prompts[chosen])
    train = distinct[~chosen & ~leaked]
    if not len(train):
        raise DataError("every question of the training files is held out too: no sample is left to train on")
    ordered = np.lexsort((_numbers(keys.contents[distinct[chosen]]), positions[chosen]))
    return Division(
        train, distinct[chosen][ordered], len(is_first) - len(distinct), int(np.count_nonzero(leaked)), fingerprint
    )


def _held_out_of(
    portion: Portion, positions: npt.NDArray[np.float64], prompts: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    limit = _limit(positions, portion.share, portion.end - portion.first) if len(positions) else 0.0
    try:
        return held_out(positions, prompts, limit)
    except DataError as error:
        where = f"{portion.name}: " if portion.name else ""
        raise DataError(f"{where}{error}") from error


def _limit(positions: npt.NDArray[np.float64], share: Share, samples: int) -> float:
    """Distinct samples at lower positions are held out. All samples of one prompt lie at one position."""
    most = share.most(len(positions))
    limit = float(np.partition(positions, most)[most]) if most < len(positions) else 1.0
    return min(share.below(samples), limit)


def _numbers(contents: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The first half of each key as a number."""
    return np.ascontiguousarray(contents).view(np.uint64)[::2]


def held_out(
    positions: npt.NDArray[np.float64], prompts: npt.NDArray[np.uint64], limit: float
) -> npt.NDArray[np.bool_]:
    """True for each distinct sample at a position below `limit`; at least one is held out, and at least one is not.

    Raises:
        DataError: fewer than two samples.
    """
    if len(positions) < 2:
        raise DataError(
            f"{counted(len(positions), 'distinct sample')} found: at least 2 are needed, one to train on and one to hold out; "
            "give more rows (duplicates count once)"
        )
    chosen = positions < limit
    if not chosen.any():
        chosen = prompts == prompts[positions.argmin()]
    elif chosen.all():
        chosen = prompts != prompts[positions.argmax()]
    return chosen
