"""Secrets planted in the environment and in a netrc are nowhere in what whole runs write and print, however they end."""

from __future__ import annotations

import gzip
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.flow.flow_harness import Place, processes_of, wait_until
from tests.project.test_secrets import NETRC_PASSWORD, PLANTED, SECRETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOWHERE = {
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "0",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
}
MISTAKES: dict[str, Mapping[str, str]] = {
    "a setting": {"--global-batch": "5", "--micro-batch": "2"},
    "a model on the hub": {"--model": "someone/small"},
    "a gated model": {"--model": "llama3.2-1b"},
    "a model in a bucket": {"--model": "s3://bucket/model"},
    "data on the hub": {"--dataset": "someone/data"},
    "data in a bucket": {"--dataset": "s3://bucket/data.jsonl"},
    "a learning rate that diverges": {"--learning-rate": "1", "--max-grad-norm": "0", "--weight-decay": "1"},
}


@pytest.fixture
def planted(place: Place) -> Place:
    """A place whose environment and netrc are full of secrets."""
    netrc = place.folder / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {NETRC_PASSWORD}\n")
    netrc.chmod(0o600)
    place.write_config(evaluation={"max_rows": 1, "max_loss_rows": 1})
    return Place(
        place.folder, {**place.environment, **PLANTED, **NOWHERE, "NETRC": str(netrc), "HOME": str(netrc.parent)}
    )


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in it: artifacts and cards are compressed."""
    raw = path.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)


def leaks_below(folder: Path) -> list[str]:
    """`<file>: <secret>` for every planted value, but for the netrc that was planted."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".netrc"]
    return [
        f"{path}: {secret}"
        for path in files
        for text in contents(path)
        for secret in SECRETS
        if secret.encode() in text
    ]


def test_a_run_that_succeeds_keeps_them_out_of_artifacts_cards_and_files(planted: Place) -> None:
    done = planted.call(planted.run_words("--max-steps", "3"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert leaks_below(planted.folder) == []
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    cards = list(planted.folder.rglob("*.html"))
    assert cards, "cards are among the files"
    assert any(
        path.read_bytes()[:2] == b"\x1f\x8b" for path in (planted.folder / ".metaflow").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("options", MISTAKES.values(), ids=MISTAKES)
def test_a_run_that_fails_says_none(planted: Place, options: Mapping[str, str]) -> None:
    words = [word for pair in {"--max-steps": "5", **options}.items() for word in pair]
    done = planted.call(planted.run_words(*words))
    assert done.returncode != 0 or "diverge" not in str(options)
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    assert leaks_below(planted.folder) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_struck_leaves_none(planted: Place, number: signal.Signals) -> None:
    log = planted.folder / "log.txt"
    flow = planted.start(planted.run_words("--max-steps", "400"), log)
    wait_until(lambda: "| loss" in log.read_text(), timeout_s=200, what="a step")
    for process in (psutil.Process(flow.pid), *processes_of(planted.folder)):
        if process.is_running():
            process.send_signal(number)
    flow.wait(timeout=120)
    wait_until(
        lambda: not [process for process in processes_of(planted.folder) if settle(process)],
        timeout_s=60,
        what="the end",
    )
    assert leaks_below(planted.folder) == []


def settle(process: psutil.Process) -> bool:
    """Whether a process is still there; what the signal left is ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
