"""The pod's log: every rank's lines, whole, once, in order."""

from __future__ import annotations

import io
import time
from pathlib import Path

from steps.job.agent.log_forwarder import LONGEST_LINE, LogForwarder


def echo(folder: Path, ranks: range) -> tuple[LogForwarder, io.StringIO]:
    stream = io.StringIO()
    return LogForwarder(folder, ranks=ranks, stream=stream), stream


def test_the_first_rank_speaks_plainly_the_others_behind_their_number(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(2, 4))
    (tmp_path / "rank-2.log").write_text("one\n")
    (tmp_path / "rank-3.log").write_text("two\nthree\n")
    (tmp_path / "rank-0.log").write_text("another node's\n")
    made.copy()
    assert stream.getvalue() == "one\n[rank 3] two\n[rank 3] three\n"


def test_a_line_is_told_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(1))
    log = tmp_path / "rank-0.log"
    log.write_text("one\ntw")
    made.copy()
    made.copy()
    assert stream.getvalue() == "one\n"
    with log.open("a") as file:
        file.write("o\n")
    made.copy()
    assert stream.getvalue() == "one\ntwo\n"


def test_the_last_words_need_no_end_of_line(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(1))
    with made:
        (tmp_path / "rank-0.log").write_text("Traceback\nValueError: no")
    assert stream.getvalue() == "Traceback\nValueError: no\n"


def test_a_line_without_end_is_not_kept_back_for_ever(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(1))
    (tmp_path / "rank-0.log").write_text("x" * LONGEST_LINE)
    made.copy()
    assert len(stream.getvalue()) == LONGEST_LINE + 1


def test_bytes_that_are_no_text_and_logs_that_are_not_there_do_no_harm(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(2))
    (tmp_path / "rank-1.log").write_bytes(b"\xff\xfe\n")
    made.copy()
    assert stream.getvalue() == "[rank 1] \ufffd\ufffd\n"


def test_it_follows_while_the_ranks_write(tmp_path: Path) -> None:
    made, stream = echo(tmp_path, range(1))
    with made, (tmp_path / "rank-0.log").open("w") as log:
        log.write("early\n")
        log.flush()
        until_s = time.monotonic() + 20
        while not stream.getvalue():
            assert time.monotonic() < until_s
            time.sleep(0.02)
        log.write("late\n")
    assert stream.getvalue() == "early\nlate\n"
