"""No secret of the environment reaches a file or a message, however a job, a store or a hub fails."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.errors import JobError, LoraFlowError
from steps.job.job import Job
from steps.job.local_launcher import LocalLauncher
from steps.job.supervise import Outside, supervise
from steps.protocol.failure_record import read_records, record_of, write_record
from steps.protocol.rundir import TrainDir
from steps.s3 import list_objects
from steps.settings.config import parse_settings

PLANTED = {
    "HF_TOKEN": "hf_plantedHubToken0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedOldHubToken012345",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY000000",
    "AWS_SECRET_ACCESS_KEY": "plantedSecretAccessKey+/0123456789",
    "AWS_SESSION_TOKEN": "plantedSessionToken0123456789",
    "WANDB_API_KEY": "plantedTrackerKey0123456789abcdef",
}
NETRC_PASSWORD = "plantedNetrcPassword0123456789"
SECRETS = (*PLANTED.values(), NETRC_PASSWORD)

WORKER = '''
"""A worker without torch; attempt N fails in the Nth way of its spec."""
import json, os, signal, sys, time
from pathlib import Path
from steps.protocol.events import EventWriter
from steps.protocol.failure_record import record_of, write_record
from steps.s3 import list_objects
from steps.protocol.rundir import TrainDir

def fail(how):
    if how == "store":
        list_objects("s3://bucket/data")
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    raise ValueError("the loss is not a number")

def main():
    spec, attempt = Path(sys.argv[1]), int(sys.argv[3])
    directory = TrainDir(spec.parent)
    events = EventWriter(directory.events(attempt), attempt=attempt)
    events.emit("started", 0, of=4, world=1, processes=1, pid=os.getpid(), claim="001-01")
    events.emit("model_loaded", 0, seconds=0.0)
    events.emit("first_step", 1, of=4, loss=1.0)
    try:
        fail(json.loads(spec.read_text())["fails"][attempt - 1])
    except Exception as error:
        record = record_of(error, rank=0, node="here", step=1, time_s=time.time())
        write_record(directory.attempt(attempt), record)
        print(record.traceback, flush=True)
        sys.exit(record.exit_code)

main()
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a netrc, an environment full of secrets, and a store and a hub where nothing listens."""
    folder = tmp_path / "home"
    folder.mkdir()
    netrc = folder / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {NETRC_PASSWORD}\n")
    netrc.chmod(0o600)
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "HF_ENDPOINT": "http://127.0.0.1:9"}
    more = {"HOME": str(folder), "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1", "NETRC": str(netrc)}
    for name, value in {**PLANTED, **nowhere, **more}.items():
        monkeypatch.setenv(name, value)
    return folder


def leaks_below(folder: Path) -> Iterator[str]:
    """`<file>: <secret>` of every planted value in a file's bytes or name."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        yield from (f"{path}: {secret}" for secret in SECRETS if secret.encode() in content or secret in path.name)


def leaks_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param(["user"], id="exception"),
        pytest.param(["crash", "hang", "store"], id="crash-hang-store", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_fails_writes_and_says_no_secret(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str], fails: list[str]
) -> None:
    modules, run = tmp_path / "modules", tmp_path / "run"
    modules.mkdir()
    (modules / "leaky_worker.py").write_text(WORKER)
    directory = TrainDir(run / "Flow" / "1" / "train-leaky")
    environment = {"PYTHONPATH": str(modules), "SECRET_OF_THE_JOB": PLANTED["HF_TOKEN"]}
    job = Job("leaky_worker", {"fails": fails}, directory, "leaky", 4, environment=environment, label="leaky")
    limits = {
        "retry": {"max_attempts": len(fails), "max_without_progress": 9, "delay_s": 0.0},
        "deadlines": {"step_gap_s": 2.0, "grace_s": 1.0},
    }
    said: list[str] = []
    with pytest.raises(JobError) as caught:
        supervise(
            job,
            LocalLauncher(grace_s=1),
            parse_settings(limits),
            Outside(observe=lambda event: said.append(event.to_line()), notice=said.append),
        )
    assert len(list((directory.path / "attempts").iterdir())) == len(fails), str(caught.value)
    assert list(leaks_below(run)) == []
    assert leaks_in("\n".join([str(caught.value), *said, *capfd.readouterr()])) == []
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert {"spec.json", "history.json", "keeper.json", "keeper-state.json", "torchrun.log", "rank-0.log"} <= names


def test_a_store_that_cannot_be_reached_leaves_no_key_in_the_record(tmp_path: Path, home: Path) -> None:
    with pytest.raises(LoraFlowError) as caught:
        list_objects("s3://bucket/data")
    record = record_of(caught.value, rank=0, node="here", step=0, time_s=0.0)
    assert "EndpointConnectionError" in record.traceback
    write_record(tmp_path / "attempt", record)
    assert list(leaks_below(tmp_path / "attempt")) == []
    assert leaks_in(record.short() + str(caught.value)) == []
    assert read_records(tmp_path / "attempt") == [record]


HUB = """
import sys, traceback
from pathlib import Path
from steps.base.stage import describe
from steps.settings.catalog import ModelPreset
try:
    describe(ModelPreset(name="small", hub="someone/small"), cache=Path(sys.argv[1]))
except Exception:
    traceback.print_exc()
"""


def test_a_hub_that_cannot_be_reached_prints_no_token(
    tmp_path: Path, home: Path, clean_environment: dict[str, str]
) -> None:
    given = {name: os.environ[name] for name in (*PLANTED, "HF_ENDPOINT", "NETRC", "HOME")}
    environment = {**clean_environment, **given, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", HUB, str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "the hub is out of reach" in done.stderr
    assert leaks_in(done.stdout + done.stderr) == []
    assert list(leaks_below(tmp_path / "cache")) == []


def test_the_environment_of_a_job_is_no_part_of_what_identifies_it(tmp_path: Path) -> None:
    job = Job("m", {"a": 1}, TrainDir(tmp_path), "i", 1, environment={"WANDB_API_KEY": PLANTED["WANDB_API_KEY"]})
    assert job.spec_digest == dataclasses.replace(job, environment={}).spec_digest
    assert leaks_in(json.dumps(dict(job.spec))) == []


def test_a_leak_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(f"token={PLANTED['HF_TOKEN']}")
    assert len(list(leaks_below(tmp_path))) == 1
    assert leaks_in(NETRC_PASSWORD) == [NETRC_PASSWORD]
