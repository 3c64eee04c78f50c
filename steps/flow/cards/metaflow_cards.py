"""The cards as Metaflow knows them: a card type of our own, the live train card, the finished evaluate card.

The type is registered by `register_card_type`, in every process that reads a flow. Metaflow renders a card in a process of its
own from what the step handed over, so the step hands over the page's body, and the card puts the page around it. While a step
runs, the viewer gets new bodies; when it is over, a page without any script.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaflow import current
from metaflow.plugins.cards.card_modules.card import MetaflowCard, MetaflowCardComponent

from steps.errors import StorageError
from steps.flow.cards import evaluate, page, train
from steps.protocol.events import Event
from steps.protocol.records import Report
from steps.protocol.rundir import write_atomic

logger = logging.getLogger(__name__)

CARD_TYPE = "hyperpod_lora"
TRAIN_PAGE = "card.html"
"""In the training's folder: the train card as a file, which a browser reloads by itself while the training is at work."""
REPORT_PAGE = "report.html"
"""In the evaluation's folder: the evaluate card as a file that can be handed on."""
WRITE_EVERY_S, RELOAD_EVERY_S = 10.0, 15
"""Of the train card's file: how often it is written at most, and how often a browser that shows it looks again."""
ROWS_SHOWN = 20
"""Of each kind of row, unless a caller says otherwise."""


class Body(MetaflowCardComponent):
    """The part of a card that changes, as HTML made by `page.body`."""

    REALTIME_UPDATABLE = True

    def __init__(self, html: str) -> None:
        self._html = html

    def update(self, html: str) -> None:
        """Show another body from the next refresh on."""
        self._html = html

    def render(self) -> str:
        """What Metaflow passes to the card."""
        return self._html


class LoraCard(MetaflowCard):
    """The page around one `Body`."""

    type = CARD_TYPE
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True

    def __init__(self, components: Sequence[str] = (), **_: Any) -> None:
        self._body = "".join(components)

    def render(self, task: Any) -> str:
        """The finished page."""
        return page.page(str(task.pathspec), self._body)

    def render_runtime(self, task: Any, data: Mapping[str, Any]) -> str:
        """The page of a step that is at work."""
        return page.page(str(task.pathspec), self._body, reload_token=self.RELOAD_POLICY_TOKEN)

    def refresh(self, task: Any, data: Mapping[str, Any]) -> dict[str, str]:
        """What an open page puts in."""
        return {"body": "".join(data["components"].values())}


def register_card_type() -> None:
    """Make the type known to Metaflow in this process; twice does no harm."""
    from metaflow import plugins

    if LoraCard not in plugins.CARDS:
        plugins.CARDS.append(LoraCard)


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
) -> None:
    """Draw base against tuned, and keep the page beside the report. `samples` are all; at most `shown` of a kind are drawn."""
    view = evaluate.view(title=title, report=report, samples=samples, lineage=lineage, shown=shown)
    body = page.body("evaluate.html", view)
    card.append(Body(body))
    _write_page(Path(report.path) / REPORT_PAGE, page.page(title, body))


def _write_page(path: Path, html: str) -> None:
    """Keep a page where its folder is; one that cannot be written is told, and ends nothing."""
    if not path.parent.is_dir():
        return
    try:
        write_atomic(path, html.encode())
    except (StorageError, OSError) as error:
        logger.warning("%s is not written: %s", path, error)
