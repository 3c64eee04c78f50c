"""TensorBoard files in the training's directory: `tensorboard --logdir <run directory>`.

One file per attempt, begun anew by a launcher that adopts it, so that nothing stands twice. Uses TensorBoard's own event writer
(no TensorFlow, no torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.job.job import Change
from steps.protocol.events import Event
from steps.report.sink import Facts

FOLDER = "tensorboard"
TAGS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "tokens_per_s": "train/tokens_per_s",
}


@dataclass(slots=True)
class TensorBoard:
    """The sink."""

    facts: Facts
    name: str = "tensorboard"
    every_s: float = 10.0
    writers: dict[int, Any] = field(default_factory=dict)
    """By attempt."""
    written: int = 0
    """Of the present batch: what failed half-way is not written twice."""

    def send(self, changes: Sequence[Change], events: Sequence[Event]) -> None:
        """Write every step's and validation's numbers."""
        for event in events[self.written :]:
            self._write(event)
            self.written += 1
        for writer in self.writers.values():
            writer.flush()
        self.written = 0

    def _write(self, event: Event) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if event.kind == "started":  # from this step on, what earlier attempts wrote is hidden
            log = SessionLog(status=SessionLog.START)
            self._writer(event.attempt).add_event(Record(wall_time=event.time_s, step=event.step + 1, session_log=log))
        if values := numbers_of(event):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            self._writer(event.attempt).add_event(Record(wall_time=event.time_s, step=event.step, summary=summary))

    def _writer(self, attempt: int) -> Any:
        if attempt not in self.writers:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            folder = self.facts.folder / FOLDER
            folder.mkdir(exist_ok=True)
            suffix = f".a{attempt}"
            for earlier in folder.glob(f"*{suffix}"):
                earlier.unlink()
            self.writers[attempt] = EventFileWriter(str(folder), filename_suffix=suffix)
        return self.writers[attempt]

    def close(self) -> None:
        """Close all files."""
        for writer in self.writers.values():
            writer.close()


def numbers_of(event: Event) -> dict[str, float]:
    """What trackers draw of an event, by tag; empty for one that holds no numbers."""
    if event.kind == "validation" and event.data.get("loss") is not None:
        return {"validation/loss": float(event.data["loss"])}
    if event.kind not in ("first_step", "step"):
        return {}
    return {tag: float(event.data[key]) for key, tag in TAGS.items() if event.data.get(key) is not None}
