"""What torchrun starts on every rank: takes the rank's log and stack file in hand, then becomes the module.

    python -m steps.job.agent.rank <agent's directory> <attempt directory> <module> <arguments of the module…>

Light on purpose: the module's imports are the first heavy ones, and a hang in them can be seen in the stack already.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import sys
from pathlib import Path

from steps.job.agent.processes import identify
from steps.protocol.train_dir import AgentDir, AttemptDir


def main(argv: list[str]) -> None:
    """Redirect output, leave this process's identity, run the module as `__main__`; its exit is ours."""
    own, shared, module, arguments = AgentDir(Path(argv[0])), AttemptDir(Path(argv[1])), argv[2], argv[3:]
    rank = int(os.environ["RANK"])
    log = os.open(shared.log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    stack = shared.stack(rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
    identity = own.rank(rank)
    beside = identity.with_name(f".{identity.name}")
    beside.write_text(json.dumps(identify(os.getpid())))
    beside.rename(identity)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
