"""Messages to people: what is told, once, and without the address in any word of ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steps.report.notices import FILE, Notice, Notices, by_command, by_post
from steps.report.sink import ReportError
from tests.report.standin import change, facts_of, serving

ALL = frozenset({"gave_up", "budget", "stuck", "gate_failed", "finished"})
GAVE_UP = {"kind": "exhausted", "failure_class": "network", "message": "tiny: attempt 3 failed\nmore"}


def test_what_is_posted_is_json_with_a_text_for_chats_and_a_key(tmp_path: Path) -> None:
    with serving() as server:
        sink = Notices(facts_of(tmp_path), ALL, by_post(f"{server.url}/hook"))
        sink.send([change("attempt_began"), change("gave_up", 3, **GAVE_UP)], [])
    [(route, body)] = server.asked
    assert route == "/hook"
    assert body["event"] == "gave_up"
    assert body["text"] == "tiny on orders (LoraFlow/7): training was given up: tiny: attempt 3 failed"
    assert (body["attempt"], body["details"]["failure_class"]) == (3, "network")
    assert len(server.headers[0]["Idempotency-Key"]) == 16


def test_a_budget_is_told_as_one(tmp_path: Path) -> None:
    told: list[Any] = []
    sink = Notices(facts_of(tmp_path), ALL, lambda body, key: told.append(body["event"]))
    sink.send([change("gave_up", 1, **{**GAVE_UP, "kind": "budget"}), change("finished", 2, step=10, account={})], [])
    assert told == ["budget", "finished"]


def test_it_is_told_once_also_by_another_launcher_and_only_what_is_wanted(tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        sink = Notices(facts_of(tmp_path), frozenset({"gave_up"}), lambda body, key: told.append(key))
        sink.send([change("gave_up", 3, **GAVE_UP), change("finished", 3, step=1, account={})], [])
    assert len(told) == 1
    sink.send([change("gave_up", 4, **GAVE_UP)], [])
    assert len(set(told)) == 2


def test_what_could_not_be_delivered_is_not_noted_as_told(tmp_path: Path) -> None:
    with serving() as server:
        server.status = 500
        sink = Notices(facts_of(tmp_path), ALL, by_post(f"{server.url}/services/T0/secret"))
        with pytest.raises(ReportError, match="answered 500") as failed:
            sink.say(Notice("gave_up", "x"))
        assert "secret" not in str(failed.value)
        assert not (tmp_path / FILE).exists()
    with pytest.raises(ReportError) as failed:
        Notices(facts_of(tmp_path), ALL, by_post("http://127.0.0.1:9/services/secret")).say(Notice("gave_up", "x"))
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_stuck_in_a_queue_is_told_while_it_waits(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    sink = Notices(facts_of(tmp_path), ALL, lambda body, key: told.append(dict(body)), stuck_after_s=3600)
    sink.send([change("attempt_began"), change("queued", 1, time.time() - 7200)], [])
    sink.send([], [])
    assert [body["event"] for body in told] == ["stuck"]
    assert "2.0 hours" in told[0]["text"]
    fresh = Notices(facts_of(tmp_path / "b"), ALL, lambda body, key: told.append(dict(body)), stuck_after_s=3600)
    fresh.send([change("queued", 1, time.time() - 7200), change("admitted")], [])
    assert len(told) == 1


def test_a_command_gets_the_message_on_its_standard_input_and_its_failure_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script = tmp_path / "tell me.py"
    script.write_text(f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text(sys.stdin.read())")
    sink = Notices(facts_of(tmp_path), ALL, by_command(f"{sys.executable} '{script}'"))
    sink.say(Notice("gave_up", "$(touch /tmp/x) `id`; rm -rf /"))
    assert json.loads(out.read_text())["text"].endswith("$(touch /tmp/x) `id`; rm -rf /")
    with pytest.raises(ReportError, match=r"false.* ended with 1"):
        by_command("false")({}, "k")
    with pytest.raises(ReportError, match="could not be run"):
        by_command("/no/such/program")({}, "k")
