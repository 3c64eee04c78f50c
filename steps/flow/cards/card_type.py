"""The card type as Metaflow knows it: a page of our own around a body that may change.

It is registered by `register_card_type`, in every process that reads a flow, so nothing heavy is imported here. Metaflow renders
a card in a process of its own from what the step handed over, so the step hands over the page's body, and the card puts the page
around it. While a step runs, the viewer gets new bodies; when it is over, a page without any script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaflow.plugins.cards.card_modules.card import MetaflowCard, MetaflowCardComponent

from steps.flow.cards import page

CARD_TYPE = "hyperpod_lora"


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
