"""The merged model's README: what it is, how to load it, and which data and code made it. Pure text from records and lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from steps.protocol.records import Adapter, BaseModel

VALUE_LIMIT = 200
"""Characters of one lineage value; lineage.json has it whole."""


def model_card(base: BaseModel, adapter: Adapter, lineage: Mapping[str, Any], *, dtype: str) -> str:
    """A Markdown model card with the front matter that the hub reads."""
    return "\n".join([*_front_matter(base), "", *_body(base, adapter, dtype), "", *_lineage_table(lineage), ""])


def _front_matter(base: BaseModel) -> list[str]:
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [lora, merged, hyperpod-lora]",
    ]
    if base.source.startswith("hub:"):
        lines.append(f"base_model: {json.dumps(base.source.removeprefix('hub:'))}")
    return [*lines, "---"]


def _body(base: BaseModel, adapter: Adapter, dtype: str) -> list[str]:
    loss = f"{adapter.first_loss:.4f} → {adapter.last_loss:.4f}"
    validation = "" if adapter.validation_loss is None else f", validation loss {adapter.validation_loss:.4f}"
    return [
        f"# {base.name}, fine-tuned",
        "",
        f"{base.name} ({base.source}, revision {base.revision}) with a {adapter.method} adapter of rank {adapter.rank} "
        f"merged in, {dtype}. Trained for {adapter.step} of {adapter.of} steps; training loss {loss}{validation}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")',
        "```",
        "",
        "The base model's licence applies to this model as well.",
    ]


def _lineage_table(lineage: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(lineage)]
    return ["## Lineage", "", "| what | value |", "|---|---|", *rows, "", "The same as data: `lineage.json`."]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "…"
