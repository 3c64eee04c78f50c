"""The tokens that end an answer, in the merged model's generation_config.json: so that whoever generates with it stops there.

Called by `stage`. A chat template often ends a turn with another token than the config's end of text; the model has learned that
one, and a server that does not know it goes on without end.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from steps.protocol.rundir import read_json, write_json
from steps.protocol.turn_end import end_of_turn

logger = logging.getLogger(__name__)

CONFIG, GENERATION = "config.json", "generation_config.json"
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_ends(folder: Path) -> None:
    """Complete `eos_token_id` with the tokenizer's own end and the one that the chat template writes behind an answer.

    A folder whose tokenizer cannot be loaded (transformers 4 asks for protobuf with some) is left as it is: evaluation, which
    needs it, says what is wrong with it.

    Raises:
        StorageError: a config is damaged, or the disk is full.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        logger.warning("the tokenizer in %s cannot be loaded (%s): its end tokens are not added", folder, error)
        return
    path, config = folder / GENERATION, read_json(folder / CONFIG)
    settings = read_json(path) if path.is_file() else {key: config[key] for key in KEYS if config.get(key) is not None}
    known = _listed(settings.get("eos_token_id", config.get("eos_token_id")))
    ends = list(dict.fromkeys([*known, *_listed(tokenizer.eos_token_id), *end_of_turn(tokenizer)]))
    if ends != known:
        write_json(path, {**settings, "eos_token_id": ends if len(ends) > 1 else ends[0]})


def _listed(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
