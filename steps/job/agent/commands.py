"""What the agent starts: torchrun with the ranks, or the only rank by itself. Light, as the agent is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from steps.protocol.train_dir import AgentDir, AttemptDir

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""What torchrun would tell the only rank."""


def is_alone(plan: Mapping[str, Any]) -> bool:
    """Whether the only rank is started without torchrun, which imports torch a second time for nothing."""
    return bool(plan.get("alone"))


def workers_command(plan: Mapping[str, Any], own: AgentDir, shared: AttemptDir) -> list[str]:
    """The command line of one attempt's workers on this machine; `plan` as in `Agent`."""
    directories = [str(own.path), str(shared.path)]
    rank = ["-m", "steps.job.agent.rank", *directories, plan["module"], plan["spec"], "--attempt", str(plan["attempt"])]
    if is_alone(plan):
        return [sys.executable, *rank]
    return [
        *((sys.executable, "-m", plan["wrapper"]) if plan.get("wrapper") else ()),
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={plan['processes']}"),
        *rendezvous(plan),
        *("--max-restarts=0", "--event-log-handler=console"),
        *rank,
    ]


def rendezvous(plan: Mapping[str, Any]) -> list[str]:
    """torchrun's words on how the nodes find each other."""
    if int(plan.get("nodes", 1)) == 1:
        # A free port of the kernel's choice, on this machine only; its name need not resolve.
        return ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    return [
        *(f"--nnodes={plan['nodes']}", f"--node-rank={plan['node_rank']}", "--rdzv-backend=static"),
        *(f"--master-addr={plan['master_addr']}", f"--master-port={plan['master_port']}"),
    ]
