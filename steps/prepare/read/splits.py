"""Which side of the split a file in a folder belongs to, by its name: as data sets on the hub are laid out. Pure.

Called by `sources`. `train-00000-of-00002.parquet`, `data/test.jsonl`, `main/validation-*.parquet`, `gsm8k_test.csv`.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from steps.prepare.read.files import Side

WORDS: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "validation",
    "testing": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "holdout": "validation",
    "heldout": "validation",
}
_WORD = re.compile(r"[a-z]+")


def side_of(path: PurePath) -> Side:
    """The side that the file's name says, else the nearest folder that says one; `path` is relative to the data set's folder.

    In a name the first word counts, or the last: `test-questions.jsonl` and `questions_test.jsonl`, not `my-test-answers.jsonl`.
    """
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        words = _WORD.findall(part.lower())
        for word in (words[:1] + words[-1:]) if words else ():
            if word in WORDS:
                return WORDS[word]
    return ""
