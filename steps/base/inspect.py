"""What a folder must hold to serve as a base model, and what is in it: pure reading, no torch.

Called by `cache` and `stage`, for every source alike. Loads no weights: of a safetensors file only the header is read.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.protocol.safetensors_header import read_header

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Files of a model that we use; the rest of a folder (READMEs, other frameworks' weights) is left alone."""
UNWANTED = ("consolidated*", "lineage.json", "merge.json", ".*")
"""Of those, what is not part of the model: a second copy of the weights, our own records."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
CONVERT = (
    'from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; i = {folder}; o = i + "-safetensors"; '
    'M.from_pretrained(i, torch_dtype="auto").save_pretrained(o); T.from_pretrained(i).save_pretrained(o)'
)
"""Python that writes a folder's pickled weights as safetensors, beside it."""

NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
"""Safetensors' names of floating-point types → ours; others keep their name in small letters."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a model folder holds."""

    config: dict[str, Any]
    files: tuple[Path, ...]
    """Sorted by name."""
    parameters: int
    bytes: int
    dtype: str
    """Of most parameters: bf16, fp16, fp32…"""


def model_files(folder: Path) -> list[Path]:
    """The files of the model, sorted by name; nothing below subfolders."""
    return sorted(path for path in folder.iterdir() if is_model_file(path.name) and path.is_file())


def is_model_file(name: str) -> bool:
    """Whether a file of this name, directly in a model's folder or repository, is part of the model."""
    return any(fnmatch(name, pattern) for pattern in WANTED) and not any(fnmatch(name, pattern) for pattern in UNWANTED)


def inspect(folder: Path) -> Contents:
    """Check that the folder is a whole model and say what is in it.

    Raises:
        ModelError: with everything that is missing or wrong.
    """
    config = read_config(folder)
    files = model_files(folder)
    names = [path.name for path in files]
    problems = [*_weight_problems(folder, names), *_tokenizer_problems(names)]
    if problems:
        raise ModelError(f"{folder} is no usable model: " + "; ".join(problems))
    sizes: Counter[str] = Counter()
    for path in files:
        if path.suffix == ".safetensors":
            for tensor in read_header(path, error=ModelError).tensors:
                sizes[tensor.dtype] += math.prod(tensor.shape)
    if not sizes:
        raise ModelError(f"{folder} is no usable model: its safetensors hold no tensor; fetch it again")
    dtype = sizes.most_common(1)[0][0]
    return Contents(
        config=config,
        files=tuple(files),
        parameters=sizes.total(),
        bytes=sum(path.stat().st_size for path in files),
        dtype=NAMES.get(dtype, dtype.lower()),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        ModelError: not a folder, no config.json in it, or one that transformers could not use.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"{folder} {kind}: expected a folder with config.json, safetensors and a tokenizer")
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is a PEFT adapter, not a base model: give its base as --model, and this folder as --init-adapter"
            )
        raise ModelError(
            f"{folder} has no config.json (it holds {_listing(folder)}): expected a transformers model folder"
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): fetch the model again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{path} names no model_type: expected the config.json of a transformers model")
    return config


def _weight_problems(folder: Path, names: list[str]) -> list[str]:
    shards = [name for name in names if name.endswith(".safetensors")]
    if not shards:
        pickles = sorted({path.name for pattern in PICKLES for path in folder.glob(pattern)})
        if pickles:
            convert = shlex.join(
                [sys.executable, "-c", CONVERT.format(folder=json.dumps(str(folder), ensure_ascii=False))]
            )
            return [
                f"it has no safetensors, only {', '.join(pickles[:3])}; pickled weights can run code, so only safetensors are "
                f"read; if you trust these, convert them once: {convert}"
            ]
        return [f"it has no safetensors (it holds {_listing(folder)})"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        named = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return [f"{index.name} is damaged: fetch it again"]
    missing = sorted(named - set(shards))
    return [f"{index.name} names {len(missing)} missing files, first {missing[0]}: fetch them again"] if missing else []


def _tokenizer_problems(names: list[str]) -> list[str]:
    if any(name in TOKENIZERS for name in names):
        return []
    return [f"it has no tokenizer: expected {TOKENIZERS[0]} (or {', '.join(TOKENIZERS[1:])}) beside the weights"]


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
