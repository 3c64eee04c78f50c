"""What happens to jobs, pods and supervisors: deleted, killed, doubled, suspended, preempted."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e.faults.conftest import Expect, MakeTrial, patch
from tests.e2e.faults.fault_harness import Trial, eventually, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def uid_of(training: Trial) -> str:
    jobs = training.objects("pytorchjobs.kubeflow.org")
    return str(jobs[0]["metadata"]["uid"]) if jobs else ""


def test_a_pod_that_is_deleted_by_force_comes_back_and_says_so(trial: MakeTrial, expect: Expect) -> None:
    """Gone at once, so the operator makes it anew: same name, new UID, and it could never join its peers."""
    training = trial("poddelete")
    training.start()
    training.when_step(5)
    name = training.pod(1)["metadata"]["name"]
    kubectl("-n", training.namespace, "delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
    expect(
        "a pod is deleted by force (same name, new UID)",
        training,
        classes=["preempted"],
        reads="attempt 1 failed .*preempted.*its pod was deleted from outside",
    )


@pytest.mark.smoke
def test_deleting_the_job_by_hand_means_stop(trial: MakeTrial, expect: Expect) -> None:
    training = trial("jobdelete")
    training.start()
    training.when_step(5)
    name = training.objects("pytorchjobs.kubeflow.org")[0]["metadata"]["name"]
    kubectl("-n", training.namespace, "delete", "pytorchjobs.kubeflow.org", name, "--wait=false")
    said = "deleted the job, which means: stop"
    expect("the job is deleted by hand", training, classes=["preempted"], error="JobCancelled", reads=said)
    training.start(resume=True)
    again = expect("the job is deleted by hand, then resumed", training, classes=["preempted"], reads="-a2: 2 node")
    assert again["attempts"] == 2


@pytest.mark.smoke
def test_a_killed_launcher_is_followed_by_one_that_adopts_the_same_job(trial: MakeTrial, expect: Expect) -> None:
    training = trial("launcher", step_s=0.8)
    first = training.start()
    training.when_step(5)
    before = uid_of(training)
    first.kill()
    second = training.start(resume=True)
    second.when_said("is still running; watching over it from here")
    assert uid_of(training) == before
    reads = "is still running; watching over it from here"
    ended = expect("the launcher is killed (kill -9), then resume", training, classes=[], reads=reads)
    assert ended["attempts"] == 1


def test_a_launcher_that_died_while_the_workers_ended_finds_the_result(trial: MakeTrial, expect: Expect) -> None:
    training = trial("absent", steps=20)
    first = training.start()
    training.when_step(5)
    first.kill()
    kind = "pytorchjobs.kubeflow.org"
    eventually("the job is over", lambda: '"Succeeded"' in json.dumps(training.objects(kind)))
    training.start()
    reads = "attempt 1 ended while nobody watched it"
    ended = expect("the launcher is away while the workers finish (then @retry)", training, classes=[], reads=reads)
    assert ended["attempts"] == 1


def test_of_two_launchers_one_acts_and_the_other_follows(trial: MakeTrial, expect: Expect) -> None:
    training = trial("twins", step_s=0.8)
    first = training.start()
    training.when_step(3)
    second = training.start()
    second.when_said("already watches over this training; following it")
    assert len(training.objects("pytorchjobs.kubeflow.org")) == 1
    assert first.wait().get("attempts") == 1
    expect("two launchers at once", training, supervisor=second, classes=[], reads="already watches over this training")
    assert len(training.history()) == 1


def test_ctrl_c_saves_and_deletes_and_resume_goes_on(trial: MakeTrial, expect: Expect) -> None:
    training = trial("ctrlc", save_every=100, meet_s=20)
    first = training.start()
    training.when_step(5)
    first.process.send_signal(signal.SIGINT)
    first.process.wait(timeout=200)
    eventually("nothing is left", lambda: not training.left(), limit_s=150)
    training.start(resume=True)
    expect(
        "Ctrl-C, then resume",
        training,
        classes=["preempted"],
        reads="interrupted; the workers save and stop",
        lost_at_most=0,
    )


CRASH = {"1": {"rank": 1, "step": 5, "act": "crash"}}
PATIENT = {"retry": {"delay_s": 120, "max_delay_s": 120}}
"""So that a person can come between two attempts."""


def test_ctrl_c_between_two_attempts_leaves_nothing_and_resume_goes_on(trial: MakeTrial, expect: Expect) -> None:
    training = trial("between", steps=12, settings=PATIENT, acts=CRASH)
    first = training.start()
    first.when_said("attempt 2 starts in 120 s")
    first.process.send_signal(signal.SIGINT)
    first.process.wait(timeout=60)
    assert not training.left()
    training.start(resume=True)
    reads = "interrupted between two attempts; nothing of it runs"
    ended = expect("Ctrl-C between two attempts, then resume", training, classes=["unknown"], reads=reads)
    assert ended["attempts"] == 2


def test_cancel_between_two_attempts_means_stop(trial: MakeTrial, expect: Expect) -> None:
    training = trial("cancelled", steps=12, settings=PATIENT, acts=CRASH)
    first = training.start()
    first.when_said("attempt 2 starts in 120 s")
    assert "its launcher begins no further attempt" in training.cancel()
    said = "No further attempt: somebody cancelled"
    expect("cancelled between two attempts", training, classes=["unknown"], error="JobCancelled", reads=said)


def test_ctrl_c_with_detach_leaves_the_job_to_the_next_launcher(trial: MakeTrial, expect: Expect) -> None:
    training = trial("detach", step_s=0.8, settings={"cluster": {"detach": True}})
    first = training.start()
    training.when_step(5)
    before = uid_of(training)
    first.process.send_signal(signal.SIGINT)
    first.process.wait(timeout=150)
    assert uid_of(training) == before
    training.start(resume=True)
    ended = expect("Ctrl-C with detach, then resume", training, classes=[], reads="left running")
    assert ended["attempts"] == 1


@pytest.mark.slow
def test_workers_that_nobody_watches_save_and_leave_after_the_lease(trial: MakeTrial, expect: Expect) -> None:
    training = trial("lease", steps=200, step_s=1.0, save_every=1000, meet_s=20, settings={"cluster": {"lease_s": 30}})
    first = training.start()
    training.when_step(2)
    first.kill()
    eventually("the job ends", lambda: any(event.kind == "stopping" for event in training.events(1)), limit_s=120)
    eventually(
        "the job failed", lambda: '"Failed"' in json.dumps(training.objects("pytorchjobs.kubeflow.org")), limit_s=150
    )
    training.start(resume=True)
    reads = "attempt 1 failed .*no supervisor watched over it any more"
    expect("nobody watches for lease_s", training, classes=["preempted"], reads=reads, lost_at_most=0)


@pytest.mark.slow
def test_detached_workers_are_ended_by_the_kubelet_at_the_total_deadline(trial: MakeTrial, expect: Expect) -> None:
    settings = {"cluster": {"detach": True}, "deadlines": {"total_s": 90}}
    training = trial("deadline", steps=500, settings=settings)
    first = training.start()
    training.when_step(3)
    first.process.send_signal(signal.SIGINT)
    first.process.wait(timeout=60)
    eventually("the kubelet ends them", lambda: "DeadlineExceeded" in json.dumps(training.objects("pods")), limit_s=200)
    training.start(resume=True)
    reads = "it was asked to stop .*longer than.*deadline"
    fault = "detached workers reach deadlines.total_s"
    expect(fault, training, classes=["preempted"], error="JobTimeout", reads=reads, lost_at_most=400)


def test_a_suspended_job_is_preempted_and_free(trial: MakeTrial, expect: Expect) -> None:
    training = trial("suspend", save_every=100, meet_s=20)
    training.start()
    training.when_step(5)
    name = training.objects("pytorchjobs.kubeflow.org")[0]["metadata"]["name"]
    patch("pytorchjobs.kubeflow.org", name, {"spec": {"runPolicy": {"suspend": True}}})
    reads = "attempt 1 failed .*the queue suspended it"
    expect("the job is suspended (as a queue does)", training, classes=["preempted"], reads=reads, lost_at_most=0)


@pytest.mark.slow
def test_preemption_again_and_again_without_progress_ends(trial: MakeTrial, expect: Expect) -> None:
    training = trial("again", later_step_s=0.5, save_every=1000, deafness=True)
    first = training.start()
    for attempt in range(1, 9):
        if eventually("a step, or the end", lambda a=attempt: training.events(a) or first.process.poll() is not None):
            if first.process.poll() is not None:
                break
            training.when_step(2, attempt=attempt)
            kubectl("-n", training.namespace, "delete", "pod", training.pod(0)["metadata"]["name"], "--wait=false")
    reads = "attempts in a row brought no new complete checkpoint"
    classes = ["preempted"] * len(training.history())
    expect(
        "preempted again and again without progress",
        training,
        classes=classes,
        error="JobRetriesExhausted",
        reads=reads,
        lost_at_most=60,
    )


@pytest.mark.slow
def test_hyperpods_auto_resume_owns_the_pods_and_we_only_watch(trial: MakeTrial, expect: Expect) -> None:
    """Played: HyperPod's service deletes the job's pods (its role may delete pods, no more), the operator makes them anew."""
    settings = {"cluster": {"recovery": "hyperpod"}}
    training = trial("resumed", settings=settings, later_step_s=0.5)
    training.start()
    training.when_step(5)
    kubectl(
        "-n",
        training.namespace,
        "delete",
        "pods",
        "-l",
        training.selector,
        "--force",
        "--grace-period=0",
        "--wait=false",
    )
    ended = expect(
        "HyperPod's auto-resume replaces the pods (played)",
        training,
        classes=[],
        reads="pod .*-worker-[01] was deleted from outside, and made anew",
    )
    assert ended["attempts"] == 1
    claims = {event.data["claim"] for event in training.events(1) if event.kind == "started"}
    assert claims == {"001-01", "001-02"}
