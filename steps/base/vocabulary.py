"""Does the embedding have a row for every token? Read from tokenizer files and tensor headers; loads no tokenizer.

Called by `stage`. A token without a row is an index error in the middle of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.protocol.safetensors_header import read_header
from steps.protocol.weight_names import EMBEDDINGS, find_by_end


def check_vocabulary(folder: Path) -> None:
    """Hold the tokenizer's ids against the embedding's rows.

    Raises:
        ModelError: with both numbers.
    """
    rows = _rows(folder)
    tokens = max(_ids(folder), default=-1) + 1
    if rows and tokens > rows:
        raise ModelError(
            f"{folder}: the tokenizer has {tokens:,} tokens, the model's embedding {rows:,} rows: a token without a row cannot "
            "be trained; use the tokenizer that belongs to the model, or call the model's resize_token_embeddings and save it"
        )


def _rows(folder: Path) -> int:
    """0: not known."""
    for file in sorted(folder.glob("*.safetensors")):
        shapes = {tensor.name: tensor.shape for tensor in read_header(file, error=ModelError).tensors}
        if name := find_by_end(EMBEDDINGS, shapes):
            return shapes[name][0]
    return 0


def _ids(folder: Path) -> Iterator[int]:
    """Of the vocabulary, and of added tokens that text can hold.

    A special token that is neither named nor in the chat template is never made from text: Gemma 3's text models list one for
    images, whose id is their number of rows.
    """
    whole = _object(folder / "tokenizer.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not vocabulary and not whole:
        vocabulary = _object(folder / "vocab.json")
    if isinstance(vocabulary, Mapping):
        yield from (number for number in vocabulary.values() if isinstance(number, int))
    elif isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    used = _used_text(folder)
    for token in whole.get("added_tokens") or ():
        if not token.get("special") or str(token.get("content")) in used:
            yield int(token["id"])
    yield from (
        number for number in _object(folder / "added_tokens.json").values() if isinstance(number, int) and not whole
    )


def _used_text(folder: Path) -> str:
    """Where tokens are named: the template, and the settings that say which token is which."""
    settings = _object(folder / "tokenizer_config.json")
    named = {**_object(folder / "special_tokens_map.json"), **settings}
    keys = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens", "chat_template")
    template = folder / "chat_template.jinja"
    text = template.read_text("utf-8", errors="replace") if template.is_file() else ""
    return text + json.dumps([named.get(key) for key in keys], ensure_ascii=False)


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; nothing where there is none: whoever loads the tokenizer says what is wrong with it."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
