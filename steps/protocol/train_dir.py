"""The names of the files that a training and its attempts leave. Pure, and light: every rank imports it before anything else.

    train-<identity>/                        TrainDir
    train-<identity>/attempts/003/           AttemptDir: what supervisor, agents, ranks and people share
    train-<identity>/attempts/003/nodes/001/ AgentDir: what the agent of one node writes; here it is the attempt's directory

The names are a protocol between versions: a run begun before is resumed, cancelled and read after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


def _numbered(paths: Iterable[Path], before: str = "", after: str = "") -> Iterator[tuple[int, Path]]:
    """Those whose names hold a number, with it; a copy that a person made beside them is none of ours."""
    for path in paths:
        number = path.name.removeprefix(before).removesuffix(after)
        if number.isascii() and number.isdigit():
            yield int(number), path


@dataclass(frozen=True, slots=True)
class AgentDir:
    """Paths that one node's agent writes."""

    path: Path

    @property
    def plan(self) -> Path:
        """What a local agent is to run; its appearance says that the attempt was begun."""
        return self.path / "keeper.json"

    @property
    def state(self) -> Path:
        """Who the agent is: process, start time, boot. Touched while it lives."""
        return self.path / "keeper-state.json"

    @property
    def exit(self) -> Path:
        """How its ranks ended; written last."""
        return self.path / "exit.json"

    @property
    def waiting(self) -> Path:
        """What it waits for before its ranks begin, in words; gone when it waits no longer."""
        return self.path / "waiting"

    @property
    def torchrun_log(self) -> Path:
        """The log of torchrun itself."""
        return self.path / "torchrun.log"

    @property
    def log(self) -> Path:
        """The log of a local agent itself."""
        return self.path / "keeper.log"

    def rank(self, rank: int) -> Path:
        """Who the process of a rank is."""
        return self.path / f"rank-{rank}.json"

    def ranks(self) -> Iterator[tuple[int, Path]]:
        """Every rank that has begun, with its file."""
        return _numbered(self.path.glob("rank-*.json"), "rank-", ".json")


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """Paths that everybody who takes part in an attempt shares."""

    path: Path

    @property
    def events(self) -> Path:
        """Rank 0's events."""
        return self.path / "events.jsonl"

    @property
    def lease(self) -> Path:
        """The supervisor's counter: while it moves, somebody watches."""
        return self.path / "lease"

    @property
    def stop(self) -> Path:
        """The request that the workers stop: `{"grace_s": 60}`; a person who cancels adds `"reason": "cancelled"`."""
        return self.path / "stop.json"

    @property
    def peer_failed(self) -> Path:
        """Its appearance says that a node's ranks failed: those of the others can only wait for them."""
        return self.path / "peer-failed"

    @property
    def stacks_wanted(self) -> Path:
        """Its appearance makes every rank write its stack."""
        return self.path / "stacks-wanted"

    @property
    def evidence(self) -> Path:
        """What a person needs after a failure."""
        return self.path / "evidence"

    @property
    def result(self) -> Path:
        """What a job that is no training leaves."""
        return self.path / "result"

    @property
    def nodes(self) -> Path:
        """The agents' directories, where there are pods."""
        return self.path / "nodes"

    def log(self, rank: int) -> Path:
        """Everything that a rank printed."""
        return self.path / f"rank-{rank}.log"

    def logs(self) -> dict[int, Path]:
        """The logs of all ranks that have begun."""
        return dict(_numbered(self.path.glob("rank-*.log"), "rank-", ".log"))

    def stack(self, rank: int) -> Path:
        """Where a rank stood when it was asked."""
        return self.path / f"stack-{rank}.txt"

    def stacks(self) -> list[Path]:
        """The stacks that hold anything."""
        return [path for path in self.path.glob("stack-*.txt") if path.stat().st_size]

    def failure(self, rank: int) -> Path:
        """Why a rank failed, in its own words."""
        return self.path / f"failure-{rank:05d}.json"

    def failures(self) -> Iterator[Path]:
        """The records of all ranks that left one."""
        return self.path.glob("failure-*.json")

    def agents(self) -> list[AgentDir]:
        """Directories of this machine's agent and of the pods' agents; their files tell which of them there are."""
        return [self.agent, *(AgentDir(path) for path in self.nodes.glob("*"))]

    @property
    def agent(self) -> AgentDir:
        """Directory of the agent on this machine, where there are no pods."""
        return AgentDir(self.path)

    def node(self, rank: int, incarnation: int = 0) -> AgentDir:
        """Directory of a pod's agent; `incarnation` counts pods that were made anew."""
        return AgentDir(self.nodes / (f"{rank:03d}.{incarnation}" if incarnation else f"{rank:03d}"))


@dataclass(frozen=True, slots=True)
class TrainDir:
    """Paths inside `train-<identity>/`."""

    path: Path

    @property
    def spec(self) -> Path:
        """All that a rank needs to know; holds no secret."""
        return self.path / "spec.json"

    @property
    def writers(self) -> Path:
        """One directory per writer (attempt, incarnation)."""
        return self.path / "writers"

    @property
    def checkpoints(self) -> Path:
        """`step-<step>.<writer>/` each."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The final adapter, published by the supervisor."""
        return self.path / "adapter"

    @property
    def history(self) -> Path:
        """The supervisor's own record of attempts."""
        return self.path / "history.json"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor that acts."""
        return self.path / "supervisor.lock"

    @property
    def cancel(self) -> Path:
        """A person's request that it ends, until a supervisor has acted on it."""
        return self.path / "cancel.json"

    @property
    def holder(self) -> Path:
        """Who the supervisor is that acts."""
        return self.path / "supervisor.json"

    @property
    def attempts(self) -> Path:
        """`<number>/` each, from 001."""
        return self.path / "attempts"

    def numbers(self) -> list[int]:
        """Of the attempts that have left anything, in order."""
        return sorted(number for number, _ in _numbered(self.attempts.glob("[0-9]*")))

    def attempt(self, number: int) -> Path:
        """Directory of one attempt's events, logs and evidence (numbers start at 1)."""
        return self.attempts / f"{number:03d}"

    def files(self, number: int) -> AttemptDir:
        """The paths in an attempt's directory."""
        return AttemptDir(self.attempt(number))

    def events(self, number: int) -> Path:
        """Rank 0's event file of an attempt."""
        return self.files(number).events
