"""What a person sees in the Metaflow UI: the train card (live) and the evaluate card.

`TrainCard` is fed with the worker's events by the decorator and refreshes itself; `fill_evaluate_card` draws a finished
report. Neither decides anything, and training goes on if no one looks. Live updates only change components that the skeleton
already holds: Metaflow renders a new one at most once a minute.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from metaflow.cards import Markdown, ProgressBar, Table, ValueBox, VegaChart

from steps.flow.terminal import number, seconds_in_words
from steps.protocol.events import Event
from steps.protocol.records import Report

MAX_POINTS = 400
"""Points drawn per curve; longer runs are thinned, the last point always shown."""
BOX_CHARACTERS = 100
"""Metaflow's ValueBox raises for longer text; a damaged event must not end the job that it tells of."""
CELL_COLUMNS = 40
"""Characters in a line of an answer, so that four columns fit side by side."""
INK, ACCENT, SOFT = "#1f2933", "#4c51bf", "#d97706"


class TrainCard:
    """The live card of a training."""

    def __init__(self, card: Any, *, title: str, facts: Mapping[str, object]) -> None:
        self._card = card
        self._points: list[dict[str, float | str]] = []
        self._log: list[str] = []
        self._of = 0
        self._status = Markdown("Waiting for the workers.")
        self._bar = ProgressBar(max=100, label="percent of the steps", value=0)
        self._boxes = {name: ValueBox(title=name, value="–") for name in ("step", "loss", "tokens/s", "time left")}
        self._loss = VegaChart(_curve("loss", []))
        self._speed = VegaChart(_curve("tokens/s", []))
        self._happened = Markdown("")
        card.append(Markdown(f"# {title}"))
        card.append(self._status)
        card.append(self._bar)
        card.append(Table([list(self._boxes.values())]))
        card.append(Table([[self._loss, self._speed]]))
        card.append(Markdown("## What happened"))
        card.append(self._happened)
        card.append(Markdown("## Settings"))
        card.append(Table([[str(key), str(value)] for key, value in facts.items()], headers=["setting", "value"]))

    def observe(self, event: Event) -> None:
        """Take in one event; the card is redrawn at Metaflow's own pace."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)
            self._card.refresh()

    def notice(self, sentence: str) -> None:
        """Add a sentence of the supervisor's: an attempt's end, a retry, a checkpoint set aside."""
        self._log.append(f"- {html.escape(sentence)}")
        self._happened.update("\n".join(self._log[-40:]))
        self._card.refresh()

    def close(self, account: Mapping[str, Any]) -> None:
        """Show where the time went."""
        self._status.update("Training is over.")
        self._card.append(Markdown("## Where the time went"))
        self._card.append(Table(account_rows(account), headers=["", ""]))
        self._card.refresh()

    def _on_started(self, event: Event) -> None:
        start = f", from the checkpoint of step {event.step}" if event.step else ""
        self.notice(f"attempt {event.attempt} started with {event.data.get('world', 1)} process(es){start}")
        self._points = [point for point in self._points if float(point["step"]) <= event.step]

    def _on_model_loaded(self, event: Event) -> None:
        trainable, total = number(event.data.get("trainable")), number(event.data.get("parameters"))
        self._status.update(f"Model loaded: {trainable:,.0f} of {total:,.0f} parameters are trained.")

    def _on_step(self, event: Event) -> None:
        data = event.data
        self._of = int(number(data.get("of"))) or self._of
        speed, loss = number(data.get("tokens_per_s")), data.get("loss")
        if isinstance(loss, int | float):
            self._points.append({"step": event.step, "loss": float(loss), "tokens/s": speed, "split": "training"})
        left = (self._of - event.step) * number(data.get("seconds"))
        self._status.update(f"Training, attempt {event.attempt}.")
        self._bar.update(round(100 * event.step / max(self._of, 1)))
        values = (
            f"{event.step} / {self._of}",
            f"{loss:.4f}" if isinstance(loss, float) else str(loss),
            f"{speed:,.0f}",
        )
        for name, value in zip(self._boxes, (*values, seconds_in_words(left)), strict=True):
            self._boxes[name].update(value=value[:BOX_CHARACTERS].strip() or "–")
        self._draw()

    def _on_checkpoint(self, event: Event) -> None:
        mib, seconds = number(event.data.get("bytes")) / 2**20, number(event.data.get("seconds"))
        self.notice(f"checkpoint at step {event.step}: {mib:.1f} MiB in {seconds:.2f} s")

    def _on_validation(self, event: Event) -> None:
        loss = event.data.get("loss")
        if isinstance(loss, int | float):
            self._points.append({"step": event.step, "loss": float(loss), "split": "validation"})
            self.notice(f"validation at step {event.step}: loss {loss:.4f}")
            self._draw()

    def _on_stopping(self, event: Event) -> None:
        self.notice(f"asked to stop at step {event.step}; the state is saved")

    def _on_finished(self, event: Event) -> None:
        self._status.update("Finished; publishing the adapter.")

    def _draw(self) -> None:
        shown = thin(self._points, MAX_POINTS)
        self._loss.update(_curve("loss", shown))
        self._speed.update(_curve("tokens/s", [point for point in shown if "tokens/s" in point]))


def account_rows(account: Mapping[str, Any]) -> list[list[str]]:
    """The account in words: seconds as time, shares as percent, pieces of no length left out."""
    rows = []
    for key, value in account.items():
        if not isinstance(value, int | float) or (key.endswith("_s") and value < 0.05):
            continue
        name = key.removesuffix("_s").replace("_", " ")
        shown = f"{value:.0%}" if key == "goodput" else f"{value:.1f} s" if key.endswith("_s") and value < 60 else ""
        rows.append([name, shown or (seconds_in_words(value) if key.endswith("_s") else f"{value:g}")])
    return rows


def thin(points: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` points plus the last one, evenly spaced."""
    stride = -(-len(points) // most) if len(points) > most else 1
    return [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else ())]


def _curve(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": list(points)},
        "width": 380,
        "height": 220,
        "mark": {"type": "line", "point": len(points) < 60, "strokeWidth": 2},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step"},
            "y": {"field": name, "type": "quantitative", "title": name},
            "color": {
                "field": "split",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["training", "validation"], "range": [ACCENT, SOFT]},
                "legend": {"orient": "top"} if name == "loss" else None,
            },
        },
        "config": {"axis": {"labelColor": INK, "titleColor": INK, "gridColor": "#eee"}, "view": {"stroke": None}},
    }


def fill_evaluate_card(
    card: Any, *, title: str, report: Report, samples: Sequence[Mapping[str, Any]], lineage: Mapping[str, object]
) -> None:
    """Draw base against tuned: scores, losses, answers side by side, and where the model comes from."""
    card.append(Markdown(f"# {title}"))
    card.append(Markdown(f"**Gate:** {report.gate}"))
    card.append(Table([_headline_boxes(report)]))
    card.append(Table([[VegaChart(_bars(report))]]))
    card.append(Markdown(f"## Answers side by side ({len(samples)} of {report.samples} held-out samples)"))
    rows = [
        [Markdown(_cell(sample.get(key))) for key in ("prompt", "reference", "base_answer", "tuned_answer")]
        for sample in samples
    ]
    card.append(Table(rows, headers=["prompt", "expected", "base model", "tuned model"]))
    card.append(Markdown("## Where this model comes from"))
    card.append(Table([[str(key), str(value)] for key, value in lineage.items()], headers=["", ""]))


def _headline_boxes(report: Report) -> list[Any]:
    better = "success" if report.tuned_score > report.base_score else "warning"
    lower = "success" if report.tuned_loss < report.base_loss else "warning"
    return [
        ValueBox(
            title=f"{report.score_name}, {report.samples} samples",
            value=f"{report.tuned_score:.1%}",
            subtitle=str(report.details.get("words", "tuned model")),
            theme=better,
            change_indicator=f"base model: {report.base_score:.1%}",
        ),
        ValueBox(
            title="loss on held-out samples",
            value=f"{report.tuned_loss:.4f}",
            subtitle="tuned model",
            theme=lower,
            change_indicator=f"base model: {report.base_loss:.4f}",
        ),
        ValueBox(
            title="perplexity",
            value=f"{report.tuned_perplexity:.2f}",
            subtitle="tuned model",
            theme=lower,
            change_indicator=f"base model: {report.base_perplexity:.2f}",
        ),
    ]


def _bars(report: Report) -> dict[str, Any]:
    values = [
        {"model": model, "score": score}
        for model, score in (("base", report.base_score), ("tuned", report.tuned_score))
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": values},
        "width": 760,
        "height": 70,
        "mark": {"type": "bar", "cornerRadiusEnd": 3},
        "encoding": {
            "y": {"field": "model", "type": "nominal", "title": None},
            "x": {"field": "score", "type": "quantitative", "title": report.score_name, "scale": {"domain": [0, 1]}},
            "color": {"field": "model", "type": "nominal", "legend": None, "scale": {"range": [SOFT, ACCENT]}},
        },
        "config": {"view": {"stroke": None}},
    }


def _cell(value: object, limit: int = 600) -> str:
    """Text as a code block, so that a model's answer is shown and never interpreted."""
    text = str(value if value is not None else "–")
    shown = text if len(text) <= limit else text[:limit] + " …"
    lines = [part for line in shown.splitlines() or [""] for part in textwrap.wrap(line, CELL_COLUMNS) or [""]]
    return "\n".join(f"    {line}" for line in lines)
