"""Where Metaflow keeps the records of local runs: beside `.lora`, whatever the working directory. Loads no library.

Called by the flow's file before Metaflow is imported, since Metaflow reads its environment then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping
from pathlib import Path

RECORDS = "METAFLOW_DATASTORE_SYSROOT_LOCAL"
"""Metaflow's own variable: the folder that holds `.metaflow`."""
ELSEWHERE = ("KUBERNETES_SERVICE_HOST", "METAFLOW_PROFILE", RECORDS)
"""A pod has its own place, and a person's choice wins."""


def keep_records_in(root: Path, environment: MutableMapping[str, str]) -> None:
    """Have `.metaflow` below `root`, unless something else has been chosen or `root` cannot be written."""
    if any(name in environment for name in ELSEWHERE):
        return
    with contextlib.suppress(OSError):  # Metaflow's own choice then
        root.mkdir(exist_ok=True)
    if os.access(root, os.W_OK):
        environment[RECORDS] = str(root)
