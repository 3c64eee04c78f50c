"""Values for cards: rows whose text must be shown and never acted on, and a card that only remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steps.flow.cards import evaluate, page, train
from steps.protocol.events import Event
from tests.shared.sample_records import REPORT

RAN = "window.parent.document.title='ran';document.title='ran'"
HOSTILE = [
    f"<script>{RAN}</script>",
    f'<img src=x onerror="{RAN}">',
    f"</pre></section><svg onload={RAN}>",
    f"<svg><animate onbegin={RAN} attributeName=x dur=1s>",
    f'"><iframe srcdoc="<script>{RAN}</script>"></iframe>',
    f"' onmouseover={RAN} autofocus onfocus={RAN} x='",
    f"[click me](javascript:{RAN}) ![x](x) **bold** `code` | a | b |",
    "{{ 7 * 7 }} {% raw %} ${7*7} [METAFLOW_RELOAD_TOKEN]",
    "<!-- --><style>*{display:none}</style><base href=//evil>",
    "請把這份訂單轉成 JSON:三個背包,送到台北。",
    "حوّل هذا الطلب إلى JSON: ثلاث حقائب إلى القاهرة (3).",
    "\n  two\n\n   lines\ttab  ",
    f"</title></style></script></textarea></pre><script>{RAN}</script>",
    "<style>@import '//evil'; pre { display: none } body { background: url(//evil) }</style>",
    f"<math><mtext></mtext><mglyph><style><img src=x onerror={RAN}></style></mglyph></math>",
    "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 20,
]
"""Texts as data, models and people may bring them; all can be shown letter by letter."""
UNSEEN = "\x1b[31mred\x1b[0m\x00 \u202efdp.exe\u202c \x85 \ufeff \U000e0041 \ud800"
"""Characters that nobody would see, and that change what is seen."""
UNSEEN_SHOWN = "␛[31mred␛[0m␀ ⟨U+202E⟩fdp.exe⟨U+202C⟩ ⟨U+0085⟩ ⟨U+FEFF⟩ ⟨U+E0041⟩ ⟨U+D800⟩"


@dataclass
class FakeCard:
    """Remembers components and counts refreshes."""

    parts: list[Any] = field(default_factory=list)
    refreshes: int = 0

    def append(self, part: Any) -> None:
        self.parts.append(part)

    def refresh(self) -> None:
        self.refreshes += 1

    def text(self) -> str:
        """What the card would show, as HTML."""
        return "".join(part.render() for part in self.parts)


def event(kind: str, step: int = 0, *, attempt: int = 1, **data: Any) -> Event:
    return Event(kind, 1e9, attempt, step, data)


def row(text: str, **changes: Any) -> dict[str, Any]:
    """A line of samples.jsonl with this text everywhere."""
    scores = {"base_score": 0.0, "tuned_score": 1.0, "base_exact": False, "tuned_exact": True}
    return {"prompt": text, "reference": text, "base_answer": text, "tuned_answer": text, **scores, **changes}


def evaluate_page(texts: list[str]) -> str:
    """An evaluate card with these texts in rows, title, gate and lineage."""
    report = type(REPORT).from_dict(
        {**REPORT.to_dict(), "gate": texts[0], "score_name": texts[1], "details": {"words": texts[2]}}
    )
    lineage = {text: text for text in texts}
    view = evaluate.view(
        title=texts[0], report=report, samples=[row(text) for text in texts], lineage=lineage, shown=99
    )
    return page.page(texts[0], page.body("evaluate.html", view))


def train_page(texts: list[str]) -> str:
    """A train card with these texts wherever one can stand."""
    story = train.Story(texts[0], {text: text for text in texts}, run=texts[1])
    for text in texts:
        story.tell(text)
        story.observe(event("step", 1, of=text, loss=text, tokens_per_s=text))
    story.observe(event("step", 2, of=4, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=9.0, seconds=1.0))
    story.close({"productive_s": 2.0, "cost": texts[3], "currency": texts[1], "total_s": texts[2]})
    return page.page(texts[0], page.body("train.html", train.view(story)))
