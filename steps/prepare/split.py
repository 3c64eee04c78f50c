"""Which samples are held out: by content and seed alone, whatever the order of the rows. Pure.

Called by `collect` (one sample at a time) and `stage` (all of them). The same conversation always falls on the same side.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

from steps.errors import DataError
from steps.prepare.chat.conversations import Conversation

BLOCK = 65_536
"""Keys compared at a time."""

Side = Literal["", "train", "validation"]
"""What a source itself says about a row; empty: nothing."""


def content_key(conversation: Conversation) -> bytes:
    """16 bytes that stand for the conversation's content."""
    digest = hashlib.blake2b(digest_size=16)
    for turn in conversation:
        content = turn.content.encode()
        digest.update(f"{turn.role} {len(content)} ".encode() + content)
    return digest.digest()


def position(key: bytes, seed: int, fraction: float, side: Side = "") -> float:
    """Where a sample lies in [0, 1); those below `fraction` are held out.

    A sample whose source names its side is put into that part of the interval.
    """
    digest = hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    free = (int.from_bytes(digest, "little") >> 11) / 2**53
    if side == "validation":
        return free * fraction
    if side == "train":
        return fraction + free * (1 - fraction)
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


def held_out(positions: npt.NDArray[np.float64], fraction: float) -> npt.NDArray[np.bool_]:
    """True for each distinct sample that is held out; at least one is, and at least one is not.

    Raises:
        DataError: fewer than two samples.
    """
    if len(positions) < 2:
        raise DataError(
            f"{len(positions)} distinct sample(s) found: at least 2 are needed, one to train on and one to hold out; "
            "give more rows (duplicates count once)"
        )
    chosen = positions < fraction
    if not chosen.any():
        chosen[positions.argmin()] = True
    elif chosen.all():
        chosen[positions.argmax()] = False
    return chosen
