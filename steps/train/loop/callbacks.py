"""What happens after each optimizer step, whatever the backend: events, the check for divergence, validation, saves, the end.

Made by `worker`, called by a backend on every rank. All decisions follow from values that are equal on all ranks (the step,
the combined loss, the combined request to stop), so ranks agree without asking each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steps.errors import LoraFlowError
from steps.protocol.checkpoints import Writer, checkpoint_path, commit, prune
from steps.protocol.events import EventWriter
from steps.protocol.failure_class import EXIT_DIVERGED
from steps.protocol.rundir import read_json, storage_errors, write_json
from steps.train.loop.backend import Backend, StepDone, Told
from steps.train.spec import TrainSpec

MEMORY = "progress.json"
TELL_EVERY_S = 5.0
"""Between two words on a validation."""


class DivergedError(LoraFlowError):
    """The loss or the gradients are no numbers any more; going on cannot help."""

    headline = "Training diverged"
    exit_code = EXIT_DIVERGED


@dataclass(slots=True)
class Progress:
    """What has to be remembered over a restart, beside the backend's own state. Kept in every checkpoint."""

    best_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int = 0
    last_loss: float | None = None
    """Latest validation loss."""
    best_head: dict[str, Any] | None = None
    last_head: dict[str, Any] | None = None
    """`HeldOutLoss` of these two validations."""
    without_better: int = 0
    """Validations since the lowest."""
    ended: bool = False
    """Early stopping has ended training: nothing is left to do but to hand out the result."""


class Callbacks:
    """Satisfies `backend.Listener`."""

    def __init__(
        self,
        spec: TrainSpec,
        backend: Backend,
        *,
        events: EventWriter | None,
        writer: Writer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._backend, self._events, self._writer, self._clock = spec, backend, events, writer, clock
        self.progress = Progress()
        self.step = 0
        """Steps done, for whoever reports a failure."""
        self.stopped = False
        """Ended by a request, not by coming to the end."""
        self._begun = clock()
        self._is_first = True

    def resume(self, checkpoint: Path, step: int) -> None:
        """Remember what the checkpoint remembers."""
        self.progress = Progress(**read_json(checkpoint / MEMORY))
        self.step = step

    def start_clock(self) -> None:
        """The first step begins now."""
        self._begun = self._clock()

    def step_done(self, done: StepDone) -> bool:
        """Report, check, validate, save; True ends training.

        Raises:
            DivergedError: loss or gradient norm is NaN or infinite.
            StorageError: a checkpoint cannot be written.
        """
        self.step = done.step
        self._report(done)
        if not self._spec.graphs_only:  # there every number is a zero of the stand-in for the device
            self._require_numbers(done)
        is_last = done.step >= self._spec.steps
        is_end = is_last or done.stop_asked
        if self._spec.validation_rows and (is_last or done.step % self._spec.validation_every == 0):
            is_end = self._validate(done.step) or is_end
        self.progress.ended = is_last or self._is_out_of_patience
        if (is_end or done.step % self._spec.checkpoint_every == 0) and not self._spec.graphs_only:
            self._save(done.step)
        self.stopped = done.stop_asked and not self.progress.ended
        if self.stopped:
            self._emit("stopping", done.step, reason="asked to stop")
        self.start_clock()
        return is_end

    def _report(self, done: StepDone) -> None:
        seconds = self._clock() - self._begun
        if self._is_first:
            self._emit("first_step", done.step, seconds=round(seconds, 4))
            self._is_first = False
        self._emit(
            "step",
            done.step,
            of=self._spec.steps,
            loss=done.loss,
            lr=done.learning_rate,
            grad_norm=done.grad_norm,
            tokens=done.tokens,
            target_tokens=done.target_tokens,
            tokens_per_s=round(done.tokens / seconds, 1) if seconds > 0 else 0.0,
            seconds=round(seconds, 4),
        )

    def _require_numbers(self, done: StepDone) -> None:
        for what, value in (("loss", done.loss), ("gradient norm", done.grad_norm)):
            if not math.isfinite(value):
                raise DivergedError(
                    f"the {what} is {value} at step {done.step} of {self._spec.steps}, learning rate "
                    f"{done.learning_rate:.3g}: lower --learning-rate (now {self._spec.training.learning_rate:g}) or raise "
                    "--warmup-ratio; if it happens at step 1, look at the base model's weights and the data"
                )

    @property
    def _is_out_of_patience(self) -> bool:
        return bool(self._spec.patience) and self.progress.without_better >= self._spec.patience

    def _validate(self, step: int) -> bool:
        begun = self._clock()
        self._emit("validation_begin", step)
        loss = self._backend.validate(self._teller(step))
        progress = self.progress
        is_better = progress.best_loss is None or loss < progress.best_loss
        progress.last_loss = loss
        head = self._backend.validation_head()
        progress.last_head = head.to_dict() if head else None
        if is_better:
            progress.best_loss, progress.best_step, progress.without_better = loss, step, 0
            progress.best_head = progress.last_head
            if self._spec.keep == "best":
                self._backend.remember_best()
        else:
            progress.without_better += 1
        seconds = round(self._clock() - begun, 4)
        self._emit(
            "validation", step, loss=loss, best=progress.best_loss, best_step=progress.best_step, seconds=seconds
        )
        return self._is_out_of_patience

    def check_begins(self) -> None:
        """The exported adapter is about to be looked at: the deadline is a validation's."""
        self._emit("validation_begin", self.step, what="adapter")

    def _teller(self, step: int) -> Told:
        """Tells of a validation that takes long."""
        next_s = self._clock() + TELL_EVERY_S

        def tell(done: int, of: int) -> None:
            nonlocal next_s
            if self._clock() >= next_s:
                next_s = self._clock() + TELL_EVERY_S
                rows = self._spec.validation_rows
                self._emit("validation_progress", step, done=rows * done // of, of=rows)

        return tell

    def _save(self, step: int) -> None:
        begun = self._clock()
        self._emit("checkpoint_begin", step)
        place = self._spec.place
        folder = checkpoint_path(place.checkpoints, step, self._writer)
        if self._events is not None:
            with storage_errors(f"writing {folder}"):
                folder.mkdir(parents=True)
        self._backend.save(folder)
        if self._events is None:
            return
        write_json(folder / MEMORY, asdict(self.progress))
        saved = commit(
            folder, step=step, writer=self._writer, identity=self._spec.identity, layout=self._backend.layout
        )
        prune(place.checkpoints, keep=self._spec.checkpoints_kept, writer=self._writer, protect=[folder])
        seconds = round(self._clock() - begun, 4)
        self._emit("checkpoint", step, seconds=seconds, bytes=saved.bytes, path=str(folder.relative_to(place.path)))

    def _emit(self, kind: str, step: int, **data: object) -> None:
        if self._events is not None:
            self._events.emit(kind, step, **data)  # type: ignore[arg-type]  # every caller's word is a Kind
