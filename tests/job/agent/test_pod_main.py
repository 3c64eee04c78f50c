"""A pod's entry program: whose folder, which last words, how long it waits. And the whole of it, on this machine as one node."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import StorageError
from steps.job.agent.pod_main import Node, claim_folder, last_words, ours, recreated, told_in, unresolved, wait_for_name
from steps.protocol.events import PREFIX
from steps.protocol.failure_record import FailureRecord, parse_record, record_of, write_record
from steps.pytorchjob import pod_template

PROJECT = Path(__file__).resolve().parents[3]
NODE = Node(1, "j-worker-1", "uid-2", "node-7", "j-worker-0", 23456)


def test_its_place_comes_from_the_variables_of_the_manifest() -> None:
    given = {"NODE_RANK": "1", "POD_NAME": "j-worker-1", "POD_UID": "uid-2", "NODE_NAME": "node-7"}
    assert Node.of({**given, "MASTER_ADDR": "j-worker-0", "MASTER_PORT": "23456"}) == NODE


def test_a_recreated_pod_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert [claim_folder(tmp_path, 1).name for _ in range(3)] == ["001", "001.1", "001.2"]
    assert claim_folder(tmp_path, 0).name == "000"


def ranks(**codes: tuple[int, float]) -> dict[str, Any]:
    return {name.removeprefix("r"): {"exit_code": code, "finished_s": at} for name, (code, at) in codes.items()}


RECORD = FailureRecord("storage", "no space", "OSError", 3, "n", 7, 66, 1.0)
WORDS: dict[str, tuple[dict[str, Any], int, str]] = {
    "well": ({"exit_code": 0, "ranks": {}}, 0, ""),
    "asked to stop": (
        {"exit_code": 1, "reason": "stopped", "message": "", "ranks": ranks(r0=(143, 1.0))},
        143,
        '"reason": "stopped"',
    ),
    "a peer failed": (
        {"exit_code": 1, "reason": "peer", "ranks": ranks(r0=(143, 1.0))},
        143,
        '"reason": "peer", "message": "its ranks were stopped: another node\'s failed first',
    ),
    "nobody watches": ({"exit_code": 1, "reason": "lease", "ranks": {}}, 143, '"reason": "lease"'),
    "a rank with a record": ({"exit_code": 1, "ranks": ranks(r3=(66, 1.0))}, 66, "no space"),
    "a rank that said why": (
        {"exit_code": 1, "ranks": ranks(r2=(1, 1.0))},
        1,
        "ModuleNotFoundError: No module named 'x'",
    ),
    "a rank without a word": ({"exit_code": 1, "ranks": ranks(r4=(1, 1.0))}, 1, ""),
    "a rank without a log": ({"exit_code": 1, "ranks": ranks(r9=(1, 1.0))}, 1, ""),
    "killed": ({"exit_code": 1, "ranks": ranks(r4=(-9, 1.0))}, 137, ""),
    "the first of two": ({"exit_code": 1, "ranks": ranks(r4=(1, 5.0), r3=(66, 2.0))}, 66, "no space"),
    "victims only": ({"exit_code": 1, "ranks": ranks(r4=(-15, 1.0))}, 143, "another node's failed first"),
    "nothing known": ({}, 143, "another node's failed first"),
}


@pytest.mark.parametrize("name", WORDS)
def test_last_words(tmp_path: Path, name: str) -> None:
    ended, code, words = WORDS[name]
    write_record(tmp_path, RECORD)
    (tmp_path / "rank-2.log").write_text(f"Traceback\nModuleNotFoundError: No module named 'x'\n{PREFIX}{{}}\n\n")
    (tmp_path / "rank-4.log").write_text(f"{PREFIX}{{}}\n")
    found = last_words(ended, tmp_path, NODE)
    assert found[0] == code
    assert words in found[1]
    assert bool(words) == bool(found[1])


def test_the_words_of_a_pod_that_was_made_anew_are_understood_by_the_launcher(tmp_path: Path) -> None:
    told = json.loads(recreated(NODE, tmp_path / "003"))
    assert told["reason"] == "recreated"
    assert "j-worker-1 was deleted from outside, and made anew with UID uid-2; 003 ends here" in told["message"]


def test_worker_0_does_not_wait_for_itself() -> None:
    assert wait_for_name(Node(0, "p", "u", "n", "no-such-host.invalid", 1), limit_s=0)


def test_a_name_that_comes_is_waited_for_and_one_that_does_not_is_given_up() -> None:
    assert wait_for_name(Node(1, "p", "u", "n", "localhost", 1), limit_s=5)
    begun_s = time.monotonic()
    assert not wait_for_name(Node(1, "p", "u", "n", "no-such-host.invalid", 1), limit_s=0.6)
    assert time.monotonic() - begun_s < 30


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_shows_what_it_waits_for_while_it_waits(tmp_path: Path, rank: int) -> None:
    """Before the first question: a resolver that is away answers no sooner than after half a minute."""
    path = tmp_path / "waiting"
    with told_in(path, replace(NODE, rank=rank), 900):
        assert path.exists() == (rank == 1)
        if rank:
            assert (
                "j-worker-1 on node-7 waits for the name j-worker-0, up to 900 s (cluster.name_wait_s)"
                in path.read_text()
            )
    assert not path.exists()


def test_the_words_about_a_name_that_never_came_are_a_network_failure() -> None:
    record = parse_record(unresolved(NODE, 900))
    assert record is not None
    assert (record.failure_class, record.exit_code, record.node) == ("network", 77, "node-7")
    assert "the name j-worker-0 could not be resolved for 900 s (cluster.name_wait_s)" in record.message


def environment(**more: str) -> dict[str, str]:
    paths = f"{PROJECT}{os.pathsep}{PROJECT / 'tests' / 'job'}"
    own = {
        "NODE_RANK": "0",
        "POD_NAME": "p-0",
        "POD_UID": "u",
        "NODE_NAME": "n",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    return {**os.environ, **own, "PYTHONPATH": paths, **more}


def arguments(directory: Path, **more: Any) -> list[str]:
    given = {
        "module": "play_worker",
        "attempt": 1,
        "nodes": 1,
        "processes": 1,
        "threads": 1,
        "grace-s": 20,
        "lease-s": 600,
        "name-wait-s": 1,
    }
    return [f"--directory={directory}", *(f"--{key}={value}" for key, value in {**given, **more}.items())]


def begin(directory: Path, termination: Path, **more: Any) -> subprocess.Popen[str]:
    program = (
        "import sys, pathlib; from steps.job.agent import pod_main; import os; "
        "code = pod_main.main(sys.argv[2:], pathlib.Path(sys.argv[1])); sys.stdout.flush(); os._exit(code)"
    )
    command = [sys.executable, "-u", "-c", program, str(termination), *arguments(directory, **more)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def play(tmp_path: Path, **how: Any) -> Path:
    directory = tmp_path / "train-play"
    directory.mkdir()
    (directory / "spec.json").write_text(json.dumps({"play": {"steps": 4, "step_s": 0.05, **how}}))
    return directory


@pytest.mark.timeout(700)
def test_a_node_runs_its_ranks_and_shows_their_logs(tmp_path: Path) -> None:
    running = begin(play(tmp_path), tmp_path / "termination")
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 0, output
    assert '"kind": "finished"' in output
    assert not (tmp_path / "termination").exists()


@pytest.mark.timeout(700)
def test_a_rank_that_fails_gives_the_pod_its_code_and_its_record(tmp_path: Path) -> None:
    directory = play(tmp_path, acts={"1": {"rank": 0, "step": 2, "act": "record storage 66"}})
    running = begin(directory, tmp_path / "termination")
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 66, output
    record = parse_record((tmp_path / "termination").read_text())
    assert record is not None
    assert (record.failure_class, record.message) == ("storage", "it broke")


def wait_for_step(events: Path, running: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 300
    while not (events.exists() and '"kind": "step"' in events.read_text()):
        assert time.monotonic() < until_s, running.poll()
        time.sleep(0.05)


@pytest.mark.whole
@pytest.mark.timeout(700)
@pytest.mark.parametrize(("recovery", "is_told"), [("client", True), ("hyperpod", False)])
def test_a_node_whose_rank_failed_tells_the_others(tmp_path: Path, recovery: str, is_told: bool) -> None:
    """But not where a pod that is made anew goes on in the same attempt."""
    directory = play(tmp_path, acts={"1": {"rank": 0, "step": 2, "act": "exit 70"}})
    running = begin(directory, tmp_path / "termination", recovery=recovery)
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 70, output
    assert (directory / "attempts" / "001" / "peer-failed").exists() == is_told


@pytest.mark.whole
@pytest.mark.timeout(700)
def test_a_node_that_hears_of_it_saves_and_stops_without_waiting_for_kubernetes(tmp_path: Path) -> None:
    directory = play(tmp_path, steps=1000, save_every=1000)
    running = begin(directory, tmp_path / "termination")
    wait_for_step(directory / "attempts" / "001" / "events.jsonl", running)
    (directory / "attempts" / "001" / "peer-failed").touch()
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 143, output
    assert list((directory / "checkpoints").glob("*/COMPLETE.json"))
    told = json.loads((tmp_path / "termination").read_text())
    assert (told["reason"], told["message"]) == ("peer", "its ranks were stopped: another node's failed first")


@pytest.mark.whole
@pytest.mark.timeout(700)
def test_sigterm_lets_the_ranks_save_within_the_grace(tmp_path: Path) -> None:
    directory = play(tmp_path, steps=1000, save_every=1000)
    running = begin(directory, tmp_path / "termination")
    wait_for_step(directory / "attempts" / "001" / "events.jsonl", running)
    running.send_signal(signal.SIGTERM)
    output = running.communicate(timeout=300)[0]
    assert running.returncode == 143, output
    assert list((directory / "checkpoints").glob("*/COMPLETE.json"))
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "stopped"


def test_a_pod_that_was_made_anew_ends_at_once_with_the_reason(tmp_path: Path) -> None:
    directory = play(tmp_path)
    (directory / "attempts" / "001" / "nodes" / "000").mkdir(parents=True)
    running = begin(directory, tmp_path / "termination")
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "recreated"


def test_a_shared_directory_that_cannot_be_used_is_storages_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "train-play"
    blocked.write_text("a file where a directory should be")
    running = begin(blocked, tmp_path / "termination")
    running.communicate(timeout=60)
    record = parse_record((tmp_path / "termination").read_text())
    assert record is not None
    assert record.failure_class == "storage"
    assert running.returncode == 66


def test_a_mistake_of_this_program_is_never_the_users() -> None:
    def told(error: Exception) -> FailureRecord:
        return ours(record_of(error, rank=-1, node="n", step=0, time_s=1.0))

    assert (told(KeyError("boot")).failure_class, told(KeyError("boot")).exit_code) == ("unknown", 75)
    assert told(StorageError("full")).failure_class == "storage"


def test_a_worker_0_that_never_comes_is_told_with_its_name(tmp_path: Path) -> None:
    directory = play(tmp_path)
    command = [sys.executable, "-m", "steps.job.agent.pod_main", *arguments(directory, nodes=2)]
    given = environment(NODE_RANK="1", MASTER_ADDR="no-such-host.invalid")
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 77
    assert "no-such-host.invalid could not be resolved" in done.stdout


def archive(folder: Path) -> Path:
    module = folder / "hello.py"
    module.write_text("import sys; print('hello', *sys.argv[1:]); sys.exit(5)")
    path = folder / "code.tgz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(module, "hello.py")
    return path


def bootstrap(path: Path, digest: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        pod_template.BOOTSTRAP.read_text(),
        str(path),
        digest,
        "hello",
        "a",
        "b",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_first_program_unpacks_the_code_and_becomes_the_second(tmp_path: Path) -> None:
    path = archive(tmp_path)
    done = bootstrap(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (done.returncode, done.stdout) == (5, "hello a b\n")


def test_code_that_was_changed_or_is_not_there_is_not_run(tmp_path: Path) -> None:
    path = archive(tmp_path)
    changed = bootstrap(path, "0" * 64)
    assert changed.returncode == 66
    assert "expected 0000" in changed.stdout
    missing = bootstrap(tmp_path / "none.tgz", "0" * 64)
    assert missing.returncode == 66
    assert "is the claim mounted there, on every node?" in missing.stdout


def test_names_are_resolved_by_the_system() -> None:
    """What `wait_for_name` builds on: an unknown name is an OSError, at once or after the resolver's own time."""
    with pytest.raises(OSError, match=r".*"):
        socket.getaddrinfo("no-such-host.invalid", 1)
