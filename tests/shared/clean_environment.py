"""Subprocesses in which nothing of this machine's own settings, nor of the shell's, is left. For fixtures and for the soak."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from steps.machine import QUIET_THREADS

PROJECT = Path(__file__).resolve().parents[2]
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **QUIET_THREADS}


def hear_interrupts() -> None:
    """What a shell begins in the background ignores Ctrl-C, and so would all that a test starts: no SIGINT would be seen."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def environment_for(folder: Path) -> dict[str, str]:
    """An environment for subprocesses: own home for Metaflow, no hub, one thread, the project importable."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("METAFLOW_", "MF_", "HF_"))}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text("{}")
    return {
        **kept,
        **THREADS,
        "METAFLOW_HOME": str(home),
        "METAFLOW_USER": "tester",
        "METAFLOW_DEFAULT_METADATA": "local",
        "METAFLOW_DEFAULT_DATASTORE": "local",
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
    }
