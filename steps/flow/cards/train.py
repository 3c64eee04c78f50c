"""The story of a training, gathered from the worker's events and the supervisor's sentences, and what its card says. Pure.

Fed by `metaflow_cards.TrainCard`. A damaged event changes nothing but itself. However long a training is, a bounded number of
points is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from steps.flow.cards import chart, time_spent
from steps.flow.terminal import Pace, number, seconds_in_words
from steps.plain_text import counted
from steps.protocol.events import Event

KEPT_POINTS = 4000
"""Of one curve; twice as far apart when there are more."""
LINK = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./@=~%+-]*)?", re.ASCII)
SHOWN_SENTENCES = 40
SHOWN_MARKS = 300
CURVES = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_s": "tokens/s"}
"""Figures of a step's event that are drawn, and what they are called."""


@dataclass(slots=True)
class Curve:
    """A line that stays small: every step, then every second, every fourth; the newest point always."""

    points: list[chart.Point] = field(default_factory=list)
    stride: int = 1
    newest: chart.Point | None = None
    _seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Append a point."""
        self.newest = (float(step), value)
        if self._seen % self.stride == 0:
            self.points.append(self.newest)
        self._seen += 1
        if len(self.points) > KEPT_POINTS:
            self.points = self.points[::2]
            self.stride *= 2

    def go_back(self, step: int) -> None:
        """Forget what lies behind a step: it is done again."""
        self.points = [point for point in self.points if point[0] <= step]
        self.newest = self.points[-1] if self.points else None

    def all(self) -> list[chart.Point]:
        """The points, the newest included."""
        return [*self.points, *([self.newest] if self.newest and self.newest not in self.points[-1:] else [])]


@dataclass(slots=True)
class Story:
    """What has happened so far."""

    title: str
    facts: Mapping[str, object]
    """Settings in words; a value that is a web address becomes a link."""
    run: str = ""
    status: str = "Waiting for the workers."
    is_over: bool = False
    step: int = 0
    of: int = 0
    started_s: float | None = None
    """Unix time of the first event."""
    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in CURVES})
    validation: Curve = field(default_factory=Curve)
    marks: list[chart.Mark] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    account: Mapping[str, Any] = field(default_factory=dict)
    tokens: float = 0.0
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace)
    left_s: float | None = None
    """Seconds until the last step; None before the first."""

    def tell(self, sentence: str) -> None:
        """Add a sentence to what happened."""
        self.sentences = [*self.sentences, sentence][-500:]

    def close(self, account: Mapping[str, Any]) -> None:
        """The training is over; `account` tells where the time went."""
        self.account, self.is_over = account, True
        self.status = "Training is over."

    def observe(self, event: Event) -> bool:
        """Take in one event; False for one that changes nothing."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is None:
            return False
        if self.started_s is None:
            self.started_s = number(event.time_s) or None
        handler(event)
        return True

    def _on_started(self, event: Event) -> None:
        self.of = int(number(event.data.get("of"))) or self.of
        start = f", from the checkpoint of step {event.step}" if event.step else ""
        world = max(1, int(number(event.data.get("world", 1))))
        self.tell(f"Attempt {event.attempt} started with {counted(world, 'process', 'processes')}{start}.")
        for curve in (*self.curves.values(), self.validation):
            curve.go_back(event.step)
        self.marks = [mark for mark in self.marks if mark.style == "attempt" or mark.step <= event.step]
        if event.attempt > 1:
            self.marks.append(chart.Mark(event.step, "attempt", f"attempt {event.attempt}"))

    def _on_model_loaded(self, event: Event) -> None:
        trainable, total = number(event.data.get("trainable")), number(event.data.get("parameters"))
        self.status = f"Model loaded: {trainable:,.0f} of {total:,.0f} parameters are trained."

    def _on_step(self, event: Event) -> None:
        data = event.data
        self.step, self.of = event.step, int(number(data.get("of"))) or self.of
        for name, curve in self.curves.items():
            if (value := _finite(data.get(name))) is not None:
                curve.add(event.step, value)
        seconds = max(0.0, number(data.get("seconds")))
        self.tokens += number(data.get("tokens_per_s")) * seconds
        self.seconds += seconds
        self.left_s = self.pace.seconds_left(event)
        self.status = f"Training, attempt {event.attempt}."

    def _on_checkpoint(self, event: Event) -> None:
        mib, seconds = number(event.data.get("bytes")) / 2**20, number(event.data.get("seconds"))
        mark = chart.Mark(event.step, "checkpoint", f"checkpoint at step {event.step:,}")
        self.marks = [*self.marks, mark][-SHOWN_MARKS:]
        self.tell(f"Checkpoint at step {event.step}: {mib:.1f} MiB in {seconds:.2f} s.")

    def _on_validation(self, event: Event) -> None:
        loss = _finite(event.data.get("loss"))
        if loss is not None:
            self.validation.add(event.step, loss)
            self.tell(f"Validation at step {event.step}: loss {loss:.4f}.")

    def _on_stopping(self, event: Event) -> None:
        self.tell(f"Asked to stop at step {event.step}; the state is saved.")

    def _on_finished(self, event: Event) -> None:
        self.status = "Finished; publishing the adapter."


def view(story: Story) -> dict[str, Any]:
    """Everything that `train.html` prints."""
    loss, validation = story.curves["loss"].all(), story.validation.all()
    lines = [
        chart.Series("training, smoothed", "smooth", chart.smooth(chart.finite(loss))),
        chart.Series("each step", "raw", loss),
        chart.Series("validation", "validation", validation),
    ]
    charts = [chart.chart("loss", lines, steps=story.of, marks=story.marks)]
    charts += [
        chart.chart(CURVES[name], [chart.Series("", "raw alone", story.curves[name].all())], steps=story.of)
        for name in ("tokens_per_s", "lr", "grad_norm")
    ]
    return {
        "title": story.title,
        "status": story.status,
        "is_over": story.is_over,
        "percent": round(100 * min(story.step / story.of, 1)) if story.of else 0,
        "figures": figures(story),
        "charts": [one for one in charts if one],
        "mark_styles": {mark.style for mark in story.marks},
        "pieces": time_spent.pieces(story.account),
        "sentences": story.sentences[-SHOWN_SENTENCES:],
        "facts": [(key, str(value), is_link(str(value))) for key, value in run_facts(story).items() if str(value)],
    }


def figures(story: Story) -> list[tuple[str, str, str]]:
    """The large numbers: what, how much, and a word more."""
    losses, validation = story.curves["loss"].all(), story.validation.all()
    made = [("step", f"{story.step:,} / {story.of:,}" if story.of else "–", "")]
    made.append(("training loss", f"{losses[-1][1]:.4f}" if losses else "–", _from(losses)))
    if validation:
        made.append(("validation loss", f"{validation[-1][1]:.4f}", f"at step {validation[-1][0]:,.0f}"))
    made.append(("tokens/s", f"{story.tokens / story.seconds:,.0f}" if story.seconds else "–", "on average"))
    if story.is_over:
        total = number(story.account.get("total_s"))
        made.append(("time", time_spent.duration(total), _goodput(story.account)))
        if spent := time_spent.cost(story.account):
            amount, _, hours = spent.partition(" for ")
            made.append(("cost", amount, hours))
    else:
        made.append(("time left", "–" if story.left_s is None else seconds_in_words(story.left_s), ""))
    return made


def run_facts(story: Story) -> dict[str, object]:
    """Run, date and settings."""
    started = story.started_s
    date = (
        ""
        if started is None
        else datetime.fromtimestamp(min(max(started, 0), 2**34), UTC).strftime("%Y-%m-%d %H:%M UTC")
    )
    return {"run": story.run, "started": date, **story.facts}


def is_link(text: str) -> bool:
    """Whether the text is a web address and nothing else."""
    return LINK.fullmatch(text) is not None


def _finite(value: object) -> float | None:
    """A figure that can be drawn; None for NaN, a text, nothing."""
    is_figure = isinstance(value, int | float) and abs(value) < 1e300
    return float(value) if is_figure else None  # type: ignore[arg-type]


def _from(losses: list[chart.Point]) -> str:
    return f"from {losses[0][1]:.4f}" if len(losses) > 1 else ""


def _goodput(account: Mapping[str, Any]) -> str:
    return f"{number(account['goodput']):.0%} of it training" if "goodput" in account else ""
