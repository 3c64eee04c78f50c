"""The README beside an adapter and in a merged model: what it is, how to use it, how good it is, what it was made of.

Called by `stages` after the merge, and again after the evaluation, which knows the score. The front matter is what the hub reads.
Every name that comes from data, a model or a person is written so that Markdown and YAML show it as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from steps.flow.cards.evaluate import by_source, score_words
from steps.flow.lineage import flat, with_scores
from steps.plain_text import counted, markdown, shorten, visible
from steps.protocol.records import Adapter, BaseModel, MergedModel, Report
from steps.protocol.rundir import LINEAGE, write_atomic, write_json
from steps.settings.catalog import HUB_ID
from steps.settings.plan import Plan

VALUE_LIMIT = 200
"""Characters of one lineage value; lineage.json has it whole."""
PROMPT_LIMIT = 400
"""Characters of the example's prompt."""
DEFAULT_TOKENS = 256
"""Of the example's answer, where nothing else is known."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")
"""A licence's identifier on the hub."""
README = "README.md"

Kind = Literal["adapter", "merged"]
USE: Mapping[Kind, str] = {
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
""",
    "adapter": """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")
""",
}
CHAT = """\
messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(messages, {arguments}add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={tokens})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


@dataclass(frozen=True, slots=True)
class Made:
    """All that a card tells of."""

    plan: Plan
    base: BaseModel
    adapter: Adapter
    merged: MergedModel
    lineage: Mapping[str, Any]
    report: Report | None = None
    """None: not evaluated yet."""
    prompt: str = "Hello"
    """Of the example."""


def write_cards(made: Made) -> None:
    """README.md and lineage.json beside the adapter and in the merged model; earlier ones are replaced.

    Raises:
        StorageError: the disk refused.
    """
    lineage = with_scores(made.lineage, made.report)
    for kind, folder in (("adapter", Path(made.adapter.path)), ("merged", Path(made.merged.path))):
        write_json(folder / LINEAGE, lineage)
        write_atomic(folder / README, model_card(kind, made).encode())  # type: ignore[arg-type]  # the two kinds


def model_card(kind: Kind, made: Made) -> str:
    """A model card with the front matter that the hub reads."""
    head = yaml.safe_dump(front_matter(kind, made), sort_keys=False, allow_unicode=True, width=4096)
    return "\n".join([f"---\n{head}---", "", *_body(kind, made), *_results(made), *_lineage_table(made), ""])


def front_matter(kind: Kind, made: Made) -> dict[str, Any]:
    """What the hub knows a model by; what is not known is left out."""
    plan, base = made.plan, made.base
    base_id, license_id = hub_id(plan.model.hub or base.source.removeprefix("hub:")), license_of(plan, Path(base.path))
    data_id = hub_id(plan.dataset.hub)
    data_ids = [name for source in plan.dataset.sources if (name := hub_id(source.hub))]
    return {
        **(
            {"base_model": base_id, "base_model_relation": "adapter" if kind == "adapter" else "finetune"}
            if base_id
            else {}
        ),
        **({"license": license_id} if license_id else {}),
        **({"datasets": data_ids} if data_ids else {}),
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora", *(["merged"] if kind == "merged" else []), "hyperpod-lora"],
        **({"model-index": [_index(made, made.report, data_id)]} if made.report else {}),
    }


def _index(made: Made, report: Report, data_id: str) -> dict[str, Any]:
    """The score as the hub's leaderboards read it."""
    data = made.plan.dataset
    metrics = [("type", _line(report.score_name)), ("value", round(report.tuned_score, 4))]
    losses = [("loss", report.tuned_loss), ("perplexity", report.tuned_perplexity)]
    result = {
        "task": {"type": "text-generation"},
        "dataset": {
            "name": _line(data.title or data.name),
            "type": data_id or _line(data.name),
            "split": "held-out",
        },
        "metrics": [dict(metrics), *({"type": name, "value": round(value, 4)} for name, value in losses)],
    }
    return {"name": _line(title_of(made)), "results": [result]}


def title_of(made: Made) -> str:
    """`SmolLM2-135M-Instruct tuned on Orders as JSON`."""
    plan = made.plan
    return f"{plan.model.title or made.base.name} tuned on {plan.dataset.title or plan.dataset.name}"


def hub_id(name: str) -> str:
    """The name, if it is one that the hub can have; else nothing."""
    return name if HUB_ID.fullmatch(name) and len(name) <= 96 else ""


def license_of(plan: Plan, base: Path) -> str:
    """The base model's licence: from its preset, else from its own card; empty where nobody says."""
    said = plan.model.license or _front_matter_of(base / README).get("license")
    return said if isinstance(said, str) and LICENSE.fullmatch(said) else ""


def _front_matter_of(readme: Path) -> dict[str, Any]:
    try:
        parts = readme.read_text("utf-8").split("---\n", 2)
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _body(kind: Kind, made: Made) -> list[str]:
    base, adapter = made.base, made.adapter
    what = f"{adapter.method} adapter of rank {adapter.rank}"
    name, source = markdown(base.name), markdown(f"{base.source}, revision {base.revision}")
    is_what = (
        f"A {what} for {name} ({source})."
        if kind == "adapter"
        else f"{name} ({source}) with a {what} merged in, {made.merged.dtype}."
    )
    validation = "" if adapter.validation_loss is None else f", validation loss {adapter.validation_loss:.4f}"
    return [
        f"# {markdown(title_of(made))}",
        "",
        f"{is_what} Trained for {adapter.step:,} of {counted(adapter.of, 'step')}; "
        f"training loss {adapter.first_loss:.4f} → {adapter.last_loss:.4f}{validation}.",
        "",
        "```python",
        f"{USE[kind]}\n{_chat(made)}```",
        "",
        "The base model's licence applies to this model as well.",
        "",
    ]


def _chat(made: Made) -> str:
    """The example: a prompt, the template's arguments and the length of an answer as in training and evaluation."""
    prompt = json.dumps(visible(made.prompt if len(made.prompt) <= PROMPT_LIMIT else "Hello"), ensure_ascii=False)
    given = made.plan.chat_template_kwargs
    measured = made.report.details.get("max_new_tokens") if made.report else None
    tokens = made.plan.dataset.max_new_tokens or (measured if isinstance(measured, int) else 0) or DEFAULT_TOKENS
    return CHAT.format(prompt=prompt, arguments=f"**{visible(repr(given))}, " if given else "", tokens=tokens)


def _line(text: str) -> str:
    """A text for the front matter: on one line, since a line of three dashes would end it."""
    return shorten(" ".join(visible(text).split()), VALUE_LIMIT)


def _results(made: Made) -> list[str]:
    """Base against tuned, once it is known."""
    report = made.report
    if report is None:
        return []
    rows = [
        (markdown(score_words(report)), f"{report.base_score:.1%}", f"{report.tuned_score:.1%}"),
        ("loss", f"{report.base_loss:.4f}", f"{report.tuned_loss:.4f}"),
        ("perplexity", f"{report.base_perplexity:,.2f}", f"{report.tuned_perplexity:,.2f}"),
        *((markdown(what), base, tuned) for what, base, tuned in by_source(report)),
    ]
    words = report.details.get("words")
    return [
        f"## Results on {counted(report.samples, 'held-out sample')}",
        "",
        "| | base model | this model |",
        "|---|---|---|",
        *(f"| {name} | {base} | {tuned} |" for name, base, tuned in rows),
        "",
        *([f"{markdown(words[:1].upper() + words[1:])}.", ""] if isinstance(words, str) and words else []),
    ]


def _lineage_table(made: Made) -> list[str]:
    cells = ((markdown(name), _cell(value)) for name, value in flat(made.lineage).items())
    rows = [f"| {name} | {value} |" for name, value in cells]
    return ["## Lineage", "", "| what | value |", "|---|---|", *rows, "", f"The same as data: `{LINEAGE}`."]


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return markdown(shorten(" ".join(text.split()), VALUE_LIMIT))
