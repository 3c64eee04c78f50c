"""The sentences that a person reads, at 3 in the morning if need be: what failed, where it lies, what to do next. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.errors import JobBudgetSpent, JobCancelled, JobError, JobPermanentError, JobRetriesExhausted, JobTimeout
from steps.job.classify import Failure
from steps.job.history import Verdict
from steps.job.job import Job
from steps.job.retry import GiveUp, Resubmit
from steps.plain_text import both_ends
from steps.protocol.failure_class import FailureClass
from steps.protocol.run_options import how_to_continue, how_to_resume

ERRORS: dict[str, type[JobError]] = {
    "permanent": JobPermanentError,
    "exhausted": JobRetriesExhausted,
    "timeout": JobTimeout,
    "cancelled": JobCancelled,
    "budget": JobBudgetSpent,
}


def describe_failure(failure: Failure) -> str:
    """One sentence: class, step, message."""
    at = f" after step {failure.step}" if failure.step else ""
    first_line = both_ends((failure.message.strip() or "no message").splitlines()[0], 400)
    return f"{failure.failure_class}{at}: {first_line}"


def describe_retry(job: Job, attempt: int, failure: Failure, decision: Resubmit) -> str:
    """What failed and what happens now."""
    where = f"from step {decision.resume_from} of {job.total_steps}" if decision.resume_from else "from the start"
    when = f"in {decision.delay_s:.0f} s" if decision.delay_s >= 1 else "now"
    without = (
        f", without {', '.join(decision.exclude_nodes)} as long as others have room" if decision.exclude_nodes else ""
    )
    without += f", without {', '.join(decision.avoid_nodes)} if others have room" if decision.avoid_nodes else ""
    return (
        f"attempt {attempt} failed ({describe_failure(failure)}); attempt {attempt + 1} starts {when} {where}{without}"
    )


def final_message(job: Job, attempt: int, failure: Failure, decision: GiveUp, resume_from: int) -> str:
    """The last words about a training that is given up."""
    folder = job.directory.attempt(attempt)
    kept = f"the checkpoint of step {resume_from} is kept" if resume_from else "no checkpoint was complete yet"
    lines = [
        f"{job.label}: attempt {attempt} failed, {describe_failure(failure)}",
        f"No further attempt: {decision.reason}.",
        *(f"    {line}" for line in failure.traceback),
        f"Evidence: {folder / 'evidence'}; logs: rank-0.log and its like in {folder}.",
        f"What to do: {_what_to_do(decision, failure, job.directory.path.parent, kept)}",
    ]
    return "\n".join(lines)


def _what_to_do(decision: GiveUp, failure: Failure, run: Path, kept: str) -> str:
    if decision.kind == "budget":
        return (
            f"nothing, if it is enough: {kept}. `{how_to_resume(run)}` goes on with as much once more; with another limit: "
            f"`{how_to_continue(run)}` and a --config that has it."
        )
    return what_to_do(failure.failure_class, run, kept)


def what_to_do(failure_class: FailureClass, run: Path, kept: str) -> str:
    """The remedy for a class of failure, with a command that works as it is printed; `run`: the run's directory."""
    row = failure_class.meaning
    words = f"{row.advice}. Then `{how_to_resume(run)}` goes on ({kept})."
    if row.options:
        commands = " or ".join(f"`{how_to_continue(run, *option.split())}`" for option in row.options)
        words = f"{row.advice}: {commands} goes on ({kept}), or names what makes it another training."
    other = ", ".join(row.other_training)
    return words + (
        f" With a lower {other} it is another training: a new run, without --continue-from." if other else ""
    )


def error_of(verdict: Verdict, *, remembered_in: Path | None = None) -> JobError:
    """The exception that tells a verdict; one that a run's directory remembers says why nothing was started."""
    again = f"`{how_to_resume(remembered_in)}` tries again" if remembered_in else ""
    note = f"\n(This is remembered from before; nothing was started. {again}.)" if again else ""
    kind = ERRORS.get(verdict.kind, JobPermanentError)
    return kind(verdict.message + note, failure_class=verdict.failure_class, attempt=verdict.attempt)


def describe_holder(job: Job, holder: Mapping[str, Any]) -> str:
    """Who watches over this training already."""
    who = f"process {holder['pid']} on {holder['node']}" if holder else "another process"
    return f"{job.label}: {who} already watches over this training; following it, and taking over when it ends"
