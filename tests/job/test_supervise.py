"""The supervisor over a scripted launcher and a fake clock."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from steps.errors import JobCancelled, JobError, JobPermanentError, JobRetriesExhausted, JobTimeout, StorageError
from steps.job import cancel
from steps.job.agent.agent import DETACHED
from steps.job.job import Job
from steps.job.snapshot import JobSnapshot, Phase, Reason, WorkerState
from steps.job.supervise import JobResult, Outside, supervise
from steps.protocol.rundir import read_json
from steps.settings.config import Settings
from tests.job.job_fakes import Attempt, FakeClock, Script, ScriptedLauncher, make_job


class Stage:
    """One job, its scripted launcher, and all that the supervisor said."""

    def __init__(self, folder: Path, *scripts: Script, **settings: Any) -> None:
        self.clock = FakeClock()
        self.job = make_job(folder)
        self.launcher = ScriptedLauncher(self.clock, scripts)
        self.settings = Settings.model_validate({"retry": {"delay_s": 5.0}, **settings})
        self.notices: list[str] = []
        self.steps_seen: list[int] = []

    def run(
        self, *, job: Job | None = None, retry_permanent: bool = False, sleep: Callable[[float], None] | None = None
    ) -> JobResult:
        return supervise(
            job or self.job,
            self.launcher,
            self.settings,
            Outside(
                observe=lambda event: self.steps_seen.append(event.step) if event.kind == "step" else None,
                notice=self.notices.append,
                clock=self.clock,
                wall=self.clock,
                sleep=sleep or self.clock.sleep,
            ),
            retry_permanent=retry_permanent,
        )

    @property
    def history(self) -> dict[str, Any]:
        return read_json(self.job.directory.history)


def succeed(attempt: Attempt, look: int) -> None:
    if look == 0:
        attempt.start()
        attempt.train(1, 10)
        attempt.save(10)
    if look == 1:
        attempt.finish()


def succeed_slowly(attempt: Attempt, look: int) -> None:
    if look in (0, 5):
        succeed(attempt, min(look, 1))


def fail_with(failure_class: str, exit_code: int, *, saves: int = 0, step: int = 0) -> Script:
    def script(attempt: Attempt, look: int) -> None:
        attempt.start()
        if saves:
            attempt.train(1, saves)
            attempt.save(saves)
        attempt.record(failure_class, exit_code, step=step)

    return script


def hang_at(step: int) -> Script:
    def script(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            attempt.train(1, step)

    return script


def test_job_that_succeeds_is_published_with_an_account(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    result = stage.run()
    assert (result.result_dir / "adapter").read_bytes() == b"learned"
    assert result.result_dir == stage.job.directory.adapter
    assert (result.attempts, result.step, result.is_reused) == (1, 10, False)
    assert result.account["attempts"] == 1
    assert result.layout["world"] == 1
    assert stage.steps_seen == list(range(1, 11))
    assert json.loads(stage.job.directory.spec.read_text()) == {}


def test_published_result_is_returned_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    first = stage.run()
    again = stage.run()
    assert again.is_reused
    assert again.account == first.account
    assert stage.launcher.calls == ["create 1"]
    assert "trained already" in stage.notices[-1]


def test_user_failure_stops_at_once_with_the_workers_own_words(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("user", 64, saves=3, step=3))
    with pytest.raises(JobPermanentError) as caught:
        stage.run()
    message = str(caught.value)
    for words in (
        "attempt 1",
        "user after step 3",
        "RuntimeError: it broke",
        "line 7",
        "evidence",
        "What to do:",
        "step 3 is kept",
    ):
        assert words in message
    assert caught.value.failure_class == "user"
    assert stage.launcher.calls == ["create 1"]


def test_permanent_failure_is_remembered_and_binds_until_a_person_resumes(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("config", 65), succeed)
    with pytest.raises(JobPermanentError):
        stage.run()
    with pytest.raises(JobPermanentError, match="nothing was started"):
        stage.run()
    assert stage.launcher.calls == ["create 1"]
    result = stage.run(retry_permanent=True)
    assert result.attempts == 2
    assert stage.launcher.calls == ["create 1", "create 2"]


def test_transient_failure_is_tried_again_from_the_last_checkpoint_after_a_delay(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("network", 77, saves=4), succeed)
    before_s = stage.clock()
    result = stage.run()
    assert result.attempts == 2
    assert "attempt 2 starts in 5 s from step 4 of 10" in stage.notices[0]
    assert stage.clock() - before_s >= 5
    assert [item["failure_class"] for item in stage.history["attempts"]] == ["network", ""]
    assert result.account["recovery_s"] >= 5


def test_three_attempts_without_progress_exhaust_the_retries(tmp_path: Path) -> None:
    stage = Stage(tmp_path, *[fail_with("network", 77)] * 5)
    with pytest.raises(JobRetriesExhausted, match="3 attempts in a row"):
        stage.run()
    assert stage.launcher.calls == ["create 1", "create 2", "create 3"]


def test_preemption_is_answered_without_delay(tmp_path: Path) -> None:
    def preempted(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.train(1, 2)
        attempt.save(2)
        attempt.events.emit("stopping", 2, reason="SIGTERM")
        attempt.end(143)

    stage = Stage(tmp_path, preempted, succeed)
    stage.run()
    assert "preempted after step 2" in stage.notices[0]
    assert "starts now" in stage.notices[0]


def test_hang_is_found_by_the_step_gap_and_its_stack_is_kept(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(5), succeed, deadlines={"step_gap_s": 60})
    folder = stage.job.directory.attempt(1)

    def sleep(seconds: float) -> None:
        if (folder / "stacks-wanted").exists():
            (folder / "stack-0.txt").write_text("in sleep_for_ever")
        stage.clock.sleep(seconds)

    supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(notice=stage.notices.append, clock=stage.clock, wall=stage.clock, sleep=sleep),
    )
    assert "hang after step 5" in stage.notices[0]
    assert (folder / "evidence" / "stack-0.txt").read_text() == "in sleep_for_ever"
    assert stage.launcher.calls == ["create 1", "delete 1 5 after evidence", "create 2"]


def test_worker_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(5), succeed, deadlines={"step_gap_s": 60})
    stage.launcher.deaf = True
    stage.run()
    assert stage.launcher.calls == ["create 1", "delete 1 5 after evidence", "delete 1 0 after evidence", "create 2"]


def test_something_that_cannot_be_killed_is_said(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(5), deadlines={"deletion_s": 123})
    stage.launcher.delete = lambda job, attempt, *, grace_s: None  # type: ignore[method-assign]
    with pytest.raises(JobTimeout, match="something of attempt 1 is left 123 s"):
        stage.run()


def test_exit_0_without_a_result_is_a_failure(tmp_path: Path) -> None:
    def leave(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.train(1, 10)
        attempt.end(0)

    stage = Stage(tmp_path, leave, succeed)
    stage.run()
    assert "without a result" in stage.notices[0]


def test_result_that_is_not_whole_is_a_failure(tmp_path: Path) -> None:
    def lie(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.train(1, 10)
        attempt.finish(content=b"lea", told=b"learned")

    stage = Stage(tmp_path, lie, succeed)
    stage.run()
    assert "storage after step 10: the result is not whole" in stage.notices[0]
    assert "3 bytes, the worker wrote 7" in stage.notices[0]


def test_whole_result_counts_though_the_worker_died_on_its_way_out(tmp_path: Path) -> None:
    def finish_and_crash(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.train(1, 10)
        attempt.finish()
        attempt.end(-11)

    assert Stage(tmp_path, finish_and_crash).run().attempts == 1


def test_running_attempt_is_adopted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed_slowly)

    class Died(Exception):
        pass

    def die(seconds: float) -> None:
        raise Died

    with pytest.raises(Died):
        supervise(stage.job, stage.launcher, stage.settings, Outside(clock=stage.clock, wall=stage.clock, sleep=die))
    result = stage.run()
    assert stage.launcher.calls == ["create 1"]
    assert result.attempts == 1
    assert "still running; watching over it" in stage.notices[0]
    assert stage.steps_seen == list(range(1, 11))


def test_attempt_that_ended_while_nobody_watched_is_classified_then(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), succeed)
    stage.launcher.logs = lambda *_, **__: (_ for _ in ()).throw(StorageError("gone"))  # type: ignore[method-assign]

    def die(seconds: float) -> None:
        stage.launcher.attempts[1].record("network", 77, step=4)
        raise KeyError

    with pytest.raises(KeyError):
        supervise(stage.job, stage.launcher, stage.settings, Outside(clock=stage.clock, wall=stage.clock, sleep=die))
    del stage.launcher.logs  # type: ignore[attr-defined]
    stage.run()
    assert "ended while nobody watched" in stage.notices[0]
    assert "network after step 4" in stage.notices[1]


def test_attempt_that_was_named_but_never_created_is_created(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    create = stage.launcher.create

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("disk full")

    stage.launcher.create = fail  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        stage.run()
    stage.launcher.create = create  # type: ignore[method-assign]
    assert stage.run().attempts == 1


def test_open_attempt_with_other_settings_is_stopped_before_a_new_one_begins(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), succeed)
    with pytest.raises(ZeroDivisionError):
        supervise(
            stage.job,
            stage.launcher,
            stage.settings,
            Outside(clock=stage.clock, wall=stage.clock, sleep=lambda s: s / 0),
        )  # type: ignore[arg-type, return-value]
    stage.run(job=make_job(tmp_path, processes=2))
    assert "other settings or workers" in stage.notices[0]
    assert stage.launcher.calls == ["create 1", "delete 1 60 without evidence", "create 2"]


def test_interrupt_stops_the_workers_and_a_later_run_goes_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), succeed)

    def press_ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(
            stage.job, stage.launcher, stage.settings, Outside(clock=stage.clock, wall=stage.clock, sleep=press_ctrl_c)
        )
    assert stage.launcher.calls == ["create 1", "delete 1 60 without evidence"]
    result = stage.run()
    assert result.attempts == 2
    assert stage.history["attempts"][0]["message"] == "interrupted by a person"


def test_interrupt_between_two_attempts_leaves_nothing_open(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("network", 77, saves=2), succeed, retry={"delay_s": 30})

    def press_ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(sleep=press_ctrl_c)
    assert stage.launcher.calls == ["create 1"]
    assert "interrupted between two attempts; nothing of it runs" in stage.notices[-1]
    assert [item["failure_class"] for item in stage.history["attempts"]] == ["network"]
    assert stage.run().attempts == 2


@pytest.mark.parametrize("is_late", [False, True], ids=["made already", "made a moment later"])
def test_interrupt_while_a_job_is_being_made_leaves_no_job(tmp_path: Path, is_late: bool) -> None:
    """The API may have taken the request whose answer Ctrl-C cut off."""
    stage = Stage(tmp_path, hang_at(4), succeed)
    create = stage.launcher.create

    def cut_off(job: Job, attempt: int, **_: Any) -> None:
        if not is_late:
            create(job, attempt)
        raise KeyboardInterrupt

    def sleep(seconds: float) -> None:
        if is_late and not stage.launcher.attempts:
            create(stage.job, 1)
        stage.clock.sleep(seconds)

    stage.launcher.create = cut_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stage.run(sleep=sleep)
    assert stage.launcher.calls == ["create 1", "delete 1 60 without evidence"]
    assert stage.history["attempts"][0]["message"] == "interrupted by a person"


def test_wish_to_cancel_between_two_attempts_is_heard_while_it_waits(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fail_with("network", 77, saves=2), succeed, retry={"delay_s": 300})
    begun_s = stage.clock()

    def sleep(seconds: float) -> None:
        stage.clock.sleep(seconds)
        cancel.request(stage.job.directory)

    with pytest.raises(JobCancelled, match="which means: stop") as caught:
        stage.run(sleep=sleep)
    assert "the checkpoint of step 2 is kept" in str(caught.value)
    assert stage.clock() - begun_s < 10
    assert stage.launcher.calls == ["create 1"]
    assert not cancel.is_requested(stage.job.directory)
    with pytest.raises(JobCancelled, match="This is remembered from before"):
        stage.run()
    assert stage.run(retry_permanent=True).attempts == 2


def test_wish_to_cancel_ends_an_attempt_that_runs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), succeed)

    def sleep(seconds: float) -> None:
        stage.clock.sleep(seconds)
        if not stage.history["attempts"][0]["finished_s"]:
            cancel.request(stage.job.directory)

    with pytest.raises(JobCancelled, match="somebody cancelled or deleted it"):
        stage.run(sleep=sleep)
    assert stage.launcher.calls == ["create 1", "delete 1 60 after evidence"]
    assert not cancel.is_requested(stage.job.directory)


def test_wish_from_before_binds_an_automatic_retry_and_no_person(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed, succeed)
    cancel.request(stage.job.directory)
    with pytest.raises(JobCancelled, match="cancelled it while no launcher ran"):
        stage.run()
    assert stage.launcher.calls == [], "an attempt was made only to be ended"
    assert stage.history["verdict"]["kind"] == "cancelled"
    other = Stage(tmp_path / "other", succeed)
    cancel.request(other.job.directory)
    assert other.run(retry_permanent=True).attempts == 1


def test_an_attempt_that_was_cancelled_while_nobody_watched_does_not_end_a_resumed_training(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(2), succeed)
    with pytest.raises(ZeroDivisionError):
        stage.run(sleep=lambda seconds: 1 / 0)  # type: ignore[arg-type, return-value]
    cancelled = stage.launcher.attempts[1]
    cancelled.end(143)
    cancelled.snapshot = replace(cancelled.snapshot, reason=Reason.CANCELLED)
    assert stage.run(retry_permanent=True).attempts == 2


def test_a_detached_lease_is_so_from_the_start_and_never_moves(tmp_path: Path) -> None:
    seen: set[str] = set()

    def script(attempt: Attempt, look: int) -> None:
        seen.add((stage.job.directory.attempt(1) / "lease").read_text())
        if look == 400:
            succeed(attempt, 0)
            succeed(attempt, 1)

    stage = Stage(tmp_path, script, deadlines={"startup_s": 1000})
    outside = Outside(clock=stage.clock, wall=stage.clock, sleep=stage.clock.sleep)
    supervise(stage.job, stage.launcher, stage.settings, outside, is_detached=True)
    assert seen == {DETACHED}


def test_wish_that_comes_too_late_is_gone_with_the_result(tmp_path: Path) -> None:
    def finish_at_once(attempt: Attempt, look: int) -> None:
        attempt.start()
        cancel.request(attempt.job.directory)
        attempt.finish()

    stage = Stage(tmp_path, finish_at_once)
    assert stage.run().attempts == 1
    assert not cancel.is_requested(stage.job.directory)


def test_total_deadline_ends_the_attempt_and_the_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path, hang_at(4), deadlines={"total_s": 100, "step_gap_s": 1000})
    before_s = stage.clock()
    with pytest.raises(JobTimeout, match=r"of 100 s \(deadlines.total_s\) are used"):
        stage.run()
    assert 100 <= stage.clock() - before_s < 110


def test_total_deadline_counts_what_earlier_supervisors_used(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path, fail_with("network", 77, saves=2), hang_at(4), deadlines={"total_s": 100, "step_gap_s": 1000}
    )

    def die_after_the_first(seconds: float) -> None:
        stage.clock.sleep(60)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        supervise(
            stage.job,
            stage.launcher,
            stage.settings,
            Outside(clock=stage.clock, wall=stage.clock, sleep=die_after_the_first),
        )
    with pytest.raises(JobTimeout):
        stage.run()


def test_deleted_job_is_tried_again(tmp_path: Path) -> None:
    def vanish(attempt: Attempt, look: int) -> None:
        attempt.start()
        attempt.snapshot = JobSnapshot(Phase.GONE)

    stage = Stage(tmp_path, vanish, succeed)
    stage.run()
    assert "somebody deleted it" in stage.notices[0]


def test_time_in_a_queue_counts_against_no_other_deadline(tmp_path: Path) -> None:
    def wait_then_succeed(attempt: Attempt, look: int) -> None:
        waiting = look < 2000
        attempt.snapshot = JobSnapshot(Phase.QUEUED if waiting else Phase.STARTING, remaining=1)
        if look > 2000:
            attempt.start()
            attempt.train(1, 10)
            attempt.finish()

    stage = Stage(tmp_path, wait_then_succeed, deadlines={"startup_s": 10})
    result = stage.run()
    assert result.attempts == 1
    assert result.account["queue_s"] > 900


def test_second_supervisor_follows_and_does_not_act(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed, succeed)
    lock = FileLock(stage.job.directory.lock)
    stage.job.directory.path.mkdir()
    lock.acquire()
    other = Attempt(stage.job, 1, stage.clock)
    other.start()
    other.train(1, 3)
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        stage.clock.sleep(seconds)
        waits += 1
        if waits == 5:
            assert stage.launcher.calls == []
            lock.release()

    seen: list[str] = []
    supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(
            observe=lambda event: seen.append(event.kind),
            notice=stage.notices.append,
            clock=stage.clock,
            wall=stage.clock,
            sleep=sleep,
        ),
    )
    assert "already watches over this training; following it" in stage.notices[0]
    assert seen.count("step") >= 3


def test_follower_gives_up_at_the_total_deadline(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed, deadlines={"total_s": 20, "queue_s": 10})
    stage.job.directory.path.mkdir()
    with FileLock(stage.job.directory.lock), pytest.raises(JobTimeout, match="another supervisor has held"):
        stage.run()


def test_two_supervisors_at_once_make_one_attempt(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    results: list[JobResult | JobError] = []

    def run() -> None:
        results.append(
            supervise(
                stage.job,
                stage.launcher,
                stage.settings,
                Outside(sleep=lambda s: threading.Event().wait(0.01) and None),
            )
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert stage.launcher.calls == ["create 1"]
    assert sorted(result.is_reused for result in results if isinstance(result, JobResult)) == [False, True]


def test_lease_advances_while_the_attempt_is_watched(tmp_path: Path) -> None:
    counters: set[str] = set()

    def script(attempt: Attempt, look: int) -> None:
        counters.add((stage.job.directory.attempt(1) / "lease").read_text())
        if look == 200:
            succeed(attempt, 0)
            succeed(attempt, 1)

    stage = Stage(tmp_path, script, deadlines={"startup_s": 1000})
    supervise(
        stage.job,
        stage.launcher,
        stage.settings,
        Outside(clock=stage.clock, wall=stage.clock, sleep=stage.clock.sleep),
        lease_s=60,
    )
    assert len(counters) >= 6


def test_history_of_another_training_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    stage.job.directory.path.mkdir()
    stage.job.directory.history.write_text(
        '{"schema": "hyperpod-lora/history/1", "identity": "x", "attempts": [], "forgiven": 0}'
    )
    with pytest.raises(StorageError, match="belongs to training x"):
        stage.run()


def test_damaged_history_says_what_to_do(tmp_path: Path) -> None:
    stage = Stage(tmp_path, succeed)
    stage.job.directory.path.mkdir()
    stage.job.directory.history.write_text('{"schema": "other"}')
    with pytest.raises(StorageError, match=r"`mv .*history\.json .*then `.*hyperpod-lora resume .*`"):
        stage.run()


@pytest.mark.parametrize(("after_s", "node"), [(5.0, "node-1"), (1000.0, "")], ids=["it speaks", "it never does"])
def test_a_victims_end_waits_for_the_word_of_the_node_that_failed(tmp_path: Path, after_s: float, node: str) -> None:
    """The victim's pod may end before the culprit's tells: judged at once, that was free and blamed nobody."""
    seen_s: list[float] = []

    def play(attempt: Attempt, look: int) -> None:
        if look == 0:
            attempt.start()
            attempt.train(1, 3)
        seen_s.append(attempt.clock())
        victim = WorkerState(0, "w-0", "node-0", 143, Reason.PEER, finished_s=seen_s[0])
        killed = WorkerState(1, "w-1", "node-1", 137, finished_s=seen_s[0] + after_s)
        told = (victim, killed) if seen_s[-1] - seen_s[0] >= after_s else (victim,)
        attempt.snapshot = JobSnapshot(Phase.FAILED, told, remaining=1)

    made = Stage(tmp_path, play, succeed)
    made.run()
    first = made.history["attempts"][0]
    assert (first["failure_class"], first["node"]) == ("unknown", node)
    assert min(after_s, 30) <= seen_s[-1] - seen_s[0] < 40


def test_a_training_keeps_the_name_of_its_first_attempt_whatever_its_model_is_called_later(tmp_path: Path) -> None:
    """`llama3` and `llama3.1-8b` are one model: a second launcher has to find the cluster's job by its name."""
    labels: list[str] = []

    def script(attempt: Attempt, look: int) -> None:
        labels.append(attempt.job.label)
        fail_with("user", 64)(attempt, look)

    stage = Stage(tmp_path, script, script)
    for label in ("llama3-orders", "llama3.1-8b-orders"):
        with pytest.raises(JobPermanentError):
            stage.run(job=replace(stage.job, label=label), retry_permanent=True)
    assert labels == ["llama3-orders", "llama3-orders"]
