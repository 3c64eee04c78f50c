"""The names of an attempt's files: a run begun by an older version is resumed, cancelled and read by them."""

from __future__ import annotations

from pathlib import Path

from steps.protocol.rundir import TrainDir
from steps.protocol.train_dir import AgentDir

TRAIN = TrainDir(Path("/run/train-abc"))
ATTEMPT = TRAIN.files(3)


def test_the_names_are_those_of_every_version() -> None:
    found = {
        *(TRAIN.holder, TRAIN.cancel, TRAIN.lock),
        *(ATTEMPT.events, ATTEMPT.lease, ATTEMPT.stop, ATTEMPT.peer_failed, ATTEMPT.stacks_wanted, ATTEMPT.evidence),
        *(ATTEMPT.result, ATTEMPT.log(12), ATTEMPT.stack(12), ATTEMPT.failure(12)),
        *(ATTEMPT.agent.plan, ATTEMPT.agent.state, ATTEMPT.agent.exit, ATTEMPT.agent.torchrun_log, ATTEMPT.agent.log),
        *(ATTEMPT.node(1).exit, ATTEMPT.node(1, 2).rank(12)),
    }
    assert {str(path.relative_to(TRAIN.path)) for path in found} == {
        *("supervisor.json", "cancel.json", "supervisor.lock"),
        *(f"attempts/003/{name}" for name in ("events.jsonl", "lease", "stop.json", "peer-failed", "stacks-wanted")),
        *(
            f"attempts/003/{name}"
            for name in ("evidence", "result", "rank-12.log", "stack-12.txt", "failure-00012.json")
        ),
        *(f"attempts/003/{name}" for name in ("keeper.json", "keeper-state.json", "exit.json")),
        *(f"attempts/003/{name}" for name in ("torchrun.log", "keeper.log")),
        *("attempts/003/nodes/001/exit.json", "attempts/003/nodes/001.2/rank-12.json"),
    }


def test_what_is_there_is_found(tmp_path: Path) -> None:
    attempt = TrainDir(tmp_path).files(1)
    attempt.nodes.joinpath("001").mkdir(parents=True)
    for path in (attempt.log(0), attempt.log(33), attempt.stack(0), attempt.failure(2), attempt.node(1).rank(33)):
        path.write_text("x")
    attempt.stack(1).touch()
    assert attempt.logs() == {0: attempt.log(0), 33: attempt.log(33)}
    assert attempt.stacks() == [attempt.stack(0)]
    assert list(attempt.failures()) == [attempt.failure(2)]
    assert attempt.agents() == [AgentDir(attempt.path), attempt.node(1)]
    assert list(attempt.node(1).ranks()) == [(33, attempt.node(1).rank(33))]
