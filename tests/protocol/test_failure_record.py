"""Why a worker failed: the class of every exception, the record's file, and its short form for a termination message."""

from __future__ import annotations

import errno
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steps import errors
from steps.errors import CheckpointError, ConfigError, DataError, JobError, ModelError, Problem, StorageError
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import (
    TERMINATION_MESSAGE_LIMIT,
    FailureRecord,
    classify_exception,
    parse_record,
    read_records,
    record_of,
    write_record,
)

RECORD = FailureRecord("user", "it broke", "ValueError", 1, "node-7", 40, 64, 1000.5, "Traceback\n  line 7")


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class DistNetworkError(RuntimeError):
    """Likewise."""


class AcceleratorError(RuntimeError):
    """Likewise."""


class Diverged(errors.LoraFlowError):
    """Brings its own exit code, as the worker's does."""

    exit_code = 70


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(StorageError("full"), "storage", id="ours-storage"),
        pytest.param(OSError(errno.ENOSPC, "full"), "storage", id="disk-full"),
        pytest.param(PermissionError(errno.EACCES, "no"), "storage", id="no-permission"),
        *(
            pytest.param(OSError(getattr(errno, name), "away", "/shared/x"), "storage", id=f"file-{name}")
            for name in ("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EREMOTEIO")
        ),
        *(
            pytest.param(OSError(getattr(errno, name), "away"), "network", id=f"peer-{name}")
            for name in ("ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET")
        ),
        pytest.param(TimeoutError("timed out"), "network", id="timed-out"),
        pytest.param(socket.gaierror(-3, "Temporary failure in name resolution"), "network", id="no-name"),
        pytest.param(OSError(errno.EINVAL, "odd"), "user", id="another-os-error"),
        pytest.param(ConfigError([Problem("a", "b")]), "config", id="config"),
        pytest.param(DataError("x"), "config", id="data"),
        pytest.param(ModelError("x"), "config", id="model"),
        pytest.param(CheckpointError("x"), "config", id="checkpoint"),
        pytest.param(JobError("x"), "user", id="another-of-ours"),
        pytest.param(OutOfMemoryError("x"), "out_of_memory", id="torch-out-of-memory"),
        pytest.param(MemoryError(), "out_of_memory", id="host-out-of-memory"),
        pytest.param(DistNetworkError("x"), "network", id="torch-network"),
        pytest.param(ConnectionResetError(errno.ECONNRESET, "x"), "network", id="a-subclass-of-a-known-one"),
        pytest.param(AcceleratorError("x"), "accelerator", id="accelerator"),
        pytest.param(AcceleratorError("CUDA error: device-side assert triggered"), "user", id="a-sound-one"),
        pytest.param(ZeroDivisionError("x"), "user", id="anything-else"),
        pytest.param(KeyboardInterrupt(), "user", id="no-exception-proper"),
    ],
)
def test_the_class_of_an_exception(error: BaseException, expected: str) -> None:
    assert classify_exception(error).value == expected


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_record_of_an_exception_holds_its_traceback_and_exit_code() -> None:
    record = record_of(raised(ValueError("odd")), rank=3, node="n", step=9, time_s=5.0)
    assert (record.failure_class, record.message, record.exception) == ("user", "odd", "ValueError")
    assert (record.rank, record.node, record.step, record.exit_code, record.time_s) == (3, "n", 9, 64, 5.0)
    assert "raise error" in record.traceback
    assert record_of(raised(Diverged("nan")), rank=0, node="n", step=1, time_s=0.0).exit_code == 70
    assert record_of(raised(ValueError()), rank=0, node="n", step=1, time_s=0.0).message == "ValueError"


def test_half_a_surrogate_pair_in_a_message_loses_no_record(tmp_path: Path) -> None:
    record = record_of(raised(ValueError("no file named \udc80x")), rank=3, node="n", step=9, time_s=5.0)
    assert record.message == "no file named \\udc80x"
    print(record.traceback)  # to a terminal too
    write_record(tmp_path, record)
    write_record(tmp_path, replace(record, rank=4, message="raw \udc80"))
    assert [item.message for item in read_records(tmp_path)] == ["no file named \\udc80x", "raw \udc80"]


def test_records_are_read_back_the_earliest_first_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    later = replace(RECORD, rank=0, time_s=2000.0)
    assert write_record(tmp_path, later) == tmp_path / "failure-00000.json"
    write_record(tmp_path, RECORD)
    (tmp_path / "failure-00002.json").write_text('{"schema": ')
    (tmp_path / "failure-00003.json").mkdir()
    (tmp_path / "failure-00004.json").write_bytes(b"\xff\xfe")
    assert read_records(tmp_path) == [RECORD, later]
    assert read_records(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"schema": "hyperpod-lora/failure/2"}, id="newer-schema"),
        pytest.param({"failure_class": "sunspots"}, id="unknown-class"),
        pytest.param({"message": 7}, id="message-is-no-text"),
        pytest.param({"rank": "1"}, id="rank-is-text"),
        pytest.param({"time_s": float("nan")}, id="no-time"),
        pytest.param({"time_s": 10**400}, id="time-beyond-floats"),
        pytest.param({"failure_class": []}, id="class-is-a-list"),
    ],
)
def test_what_is_no_record_is_none(change: dict[str, object]) -> None:
    assert parse_record(json.dumps(RECORD.to_dict() | change)) is None


def test_text_a_missing_field_and_a_later_field() -> None:
    raw = RECORD.to_dict()
    assert parse_record("OOMKilled") is None
    assert parse_record("[1]") is None
    assert parse_record("[" * 100_000) is None
    assert parse_record(json.dumps({key: raw[key] for key in raw if key != "step"})) is None
    assert parse_record(json.dumps({key: raw[key] for key in raw if key != "traceback"})) == replace(
        RECORD, traceback=""
    )
    assert parse_record(json.dumps(raw | {"added_later": 1})) == RECORD


def test_a_short_record_stays_whole_and_a_long_one_keeps_the_end_of_its_traceback() -> None:
    assert parse_record(RECORD.short()) == RECORD
    long = replace(RECORD, traceback="begin " + "line\n" * 5000 + "the last words")
    found = parse_record(long.short())
    assert found is not None
    assert found.traceback.endswith("the last words")
    assert found.message == RECORD.message


texts = st.text(st.characters() | st.sampled_from('é日😀"\\\n\0'), max_size=50).flatmap(
    lambda text: st.integers(1, 300).map(lambda times: text * times)
)


@settings(deadline=None, max_examples=80)
@example("😀" * 9000, "é" * 9000, "\0" * 9000, "日" * 9000, 400)
@example("", "", "", "", TERMINATION_MESSAGE_LIMIT)
@given(texts, texts, texts, texts, st.integers(400, 5000))
def test_the_short_form_is_json_within_the_limit_in_any_script(
    message: str, trace: str, node: str, exception: str, limit: int
) -> None:
    record = replace(RECORD, message=message, traceback=trace, node=node, exception=exception)
    short = record.short(limit)
    assert len(short.encode()) <= limit
    found = parse_record(short)
    assert found is not None
    assert (found.failure_class, found.rank, found.step, found.exit_code) == ("user", 1, 40, 64)
    assert FailureClass(found.failure_class) is FailureClass.USER
