"""The tokenizer that lies beside an adapter or in a merged model: copied from the base, fit for other people's code.

Used by `train` and `merge`. Two things are mended, since plain transformers stumble over them: a tokenizer that hands out
`token_type_ids`, which no model was trained with here (`model.generate(**tokenizer(...))` raises, or GPT-2 adds them to its
input), and a base model without a chat template, which was trained with one all the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
NAMES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken",
    "special_tokens_map.json", "added_tokens.json", CONFIG, TEMPLATE,
)  # fmt: skip
ARGUMENTS = "chat_template_kwargs"
"""In tokenizer_config.json: a key of this project's, which transformers passes over."""
INPUTS = ("input_ids", "attention_mask")
"""What a tokenizer hands out for generation."""


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the base model's tokenizer into a folder; files that are there already stay.

    Raises:
        OSError: the disk refused.
    """
    for pattern in NAMES:
        for file in sorted(base.glob(pattern)):
            to = folder / file.name
            if file.is_file() and not to.exists():
                beside = to.with_name(f".{to.name}.part")
                shutil.copyfile(file, beside)
                beside.rename(to)


def make_usable(folder: Path, template: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Let the tokenizer in a folder give what generation takes, and bring the chat template that the model was trained with.

    A folder without a tokenizer_config.json is left alone, but for the template. An empty `template` is not known.
    `arguments`: what the template was given beside the conversations; kept for `template_arguments`.

    Raises:
        OSError: the disk refused.
    """
    config = _read(folder / CONFIG)
    if config is not None:
        names = [name for name in config.get("model_input_names") or INPUTS if name != "token_type_ids"]
        changed = {**config, "model_input_names": names} | ({ARGUMENTS: dict(arguments)} if arguments else {})
        if changed != config:
            _write(folder / CONFIG, json.dumps(changed, indent=2, ensure_ascii=False) + "\n")
    own = (config or {}).get("chat_template")
    if template and not (isinstance(own, list) and _is_among(template, own)):  # a list's other templates would be lost
        path = folder / TEMPLATE
        if not path.is_file() or path.read_text("utf-8") != template:
            _write(path, template)


def template_arguments(folder: Path) -> dict[str, Any]:
    """What the chat template in a folder was given in training beside the conversations: `apply_chat_template(…, **these)`."""
    found = (_read(folder / CONFIG) or {}).get(ARGUMENTS)
    return found if isinstance(found, dict) else {}


def _is_among(template: str, named: list[Any]) -> bool:
    return any(isinstance(item, dict) and item.get("template") == template for item in named)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # a damaged one is for whoever loads it to tell
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, "utf-8")
    beside.rename(path)
