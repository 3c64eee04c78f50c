"""The cards of this project's steps: the live train card, the finished evaluate card; each is a file as well.

What Metaflow has to know of them in every process is in `card_type`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaflow import current

from steps.errors import StorageError
from steps.flow.cards import evaluate, page, train
from steps.flow.cards.card_type import Body
from steps.protocol.events import Event
from steps.protocol.records import Report
from steps.protocol.rundir import write_atomic

logger = logging.getLogger(__name__)

TRAIN_PAGE = "card.html"
"""In the training's folder: the train card as a file, which a browser reloads by itself while the training is at work."""
REPORT_PAGE = "report.html"
"""In the evaluation's folder: the evaluate card as a file that can be handed on."""
WRITE_EVERY_S, RELOAD_EVERY_S = 10.0, 15
"""Of the train card's file: how often it is written at most, and how often a browser that shows it looks again."""
ROWS_SHOWN = 20
"""Of each kind of row, unless a caller says otherwise."""


class TrainCard:
    """The live card of a training: takes events and sentences, and is redrawn at Metaflow's own pace.

    With a `folder` it is a file there as well, for whoever has no Metaflow at hand.
    """

    def __init__(
        self,
        card: Any,
        *,
        title: str,
        facts: Mapping[str, object],
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        run = f"{current.flow_name}/{current.run_id}" if current.is_running_flow else ""
        self.story = train.Story(title, {**facts, **_places(run, folder)}, run=run)
        self._folder, self._clock, self._written_s = folder, clock, -math.inf
        self._card = card
        self._body = _LiveBody(self.story)
        card.append(self._body)

    def observe(self, event: Event) -> None:
        """Take in one event."""
        if self.story.observe(event):
            self._redraw()

    def notice(self, sentence: str) -> None:
        """Add a sentence of the supervisor's: an attempt's end, a retry, a checkpoint set aside."""
        self.story.tell(evaluate.sentence(sentence))
        self._redraw()

    def close(self, account: Mapping[str, Any]) -> None:
        """Show where the time went."""
        self.story.close(account)
        self._written_s = -math.inf
        self._redraw()

    def _redraw(self) -> None:
        self._card.refresh()
        if self._folder is None or self._clock() - self._written_s < WRITE_EVERY_S:
            return
        self._written_s = self._clock()
        every_s = 0 if self.story.is_over else RELOAD_EVERY_S
        html = page.page(self.story.title, page.body("train.html", train.view(self.story)), reload_every_s=every_s)
        _write_page(self._folder / TRAIN_PAGE, html)


def _places(run: str, folder: Path | None) -> dict[str, str]:
    """Where a reader finds more."""
    from metaflow.metaflow_config import UI_URL

    in_ui = f"{str(UI_URL).rstrip('/')}/{run}" if UI_URL and run else ""
    return {"run directory": str(folder.parent) if folder else "", "in the Metaflow UI": in_ui}


class _LiveBody(Body):
    """Drawn when Metaflow asks for it, not at each event."""

    def __init__(self, story: train.Story) -> None:
        self._story = story

    def render(self) -> str:
        return page.body("train.html", train.view(self._story))


def fill_evaluate_card(
    card: Any,
    *,
    title: str,
    report: Report,
    samples: Sequence[Mapping[str, Any]],
    lineage: Mapping[str, object],
    shown: int = ROWS_SHOWN,
    links: Mapping[str, str] | None = None,
) -> None:
    """Draw base against tuned, and keep the page beside the report. `samples` are all; at most `shown` of a kind are drawn.

    `links`: addresses of this run and of those that it goes on with.
    """
    view = evaluate.view(title=title, report=report, samples=samples, lineage=lineage, shown=shown, links=links)
    body = page.body("evaluate.html", view)
    card.append(Body(body))
    _write_page(Path(report.path) / REPORT_PAGE, page.page(title, body))


def show_page(card: Any, template: str, view: Mapping[str, Any]) -> None:
    """Draw a page that does not change."""
    card.append(Body(page.body(template, view)))


def _write_page(path: Path, html: str) -> None:
    """Keep a page where its folder is; one that cannot be written is told, and ends nothing."""
    if not path.parent.is_dir():
        return
    try:
        write_atomic(path, html.encode())
    except (StorageError, OSError) as error:
        logger.warning("%s is not written: %s", path, error)
