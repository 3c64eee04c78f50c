"""What is found damaged is renamed, so that it is kept for a look and never used again: `<name>.damaged`, `<name>.damaged-2`, …

`hyperpod-lora clean --damaged` shows and removes it.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from steps.protocol.rundir import storage_errors

NAME = re.compile(r"\.damaged(-\d+)?$")
"""How the name of what was set aside ends."""


def set_aside(path: Path, *, hidden: bool = False) -> Path:
    """Rename a damaged file or directory to the first free name; returns the new path.

    `hidden`: with a dot in front, for what is found by how its name begins.

    Raises:
        StorageError: it cannot be renamed.
    """
    stem = f".{path.name}" if hidden else path.name
    names = itertools.chain([f"{stem}.damaged"], (f"{stem}.damaged-{number}" for number in itertools.count(2)))
    target = next(found for name in names if not (found := path.with_name(name)).exists())
    with storage_errors(f"setting {path} aside"):
        path.rename(target)
    return target
