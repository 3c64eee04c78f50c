"""A base model's folder and an adapter's folder, read as far as their configs and tensor headers, and checked against each other.

Used by `folder`, and by `stage` for the size. Reads no weights and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import CheckpointError, LoraFlowError, ModelError
from steps.merge import delta
from steps.protocol.safetensors_header import DTYPE_NAMES, ITEM_BYTES, StoredTensor, read_header
from steps.protocol.weight_names import EMBEDDINGS, HEADS, find_by_end, stored_name

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Base:
    """A base model's files, headers read."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, tuple[tuple[StoredTensor, ...], dict[str, str]]]
    """Weight file → its tensors and metadata."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {tensor.name: tensor for tensors, _ in self.files.values() for tensor in tensors}

    @property
    def bytes(self) -> int:
        """Of all weight files."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def bytes_in(base: Base, dtype: str) -> int:
    """Bytes of the weight files with the weights in torch's `dtype`; auto: as they are."""
    stored = DTYPE_NAMES.get(dtype)
    if stored is None:
        return base.bytes
    weights = [tensor for tensor in base.tensors.values() if tensor.dtype in DTYPE_NAMES.values()]
    items = [(tensor.bytes // ITEM_BYTES[tensor.dtype], tensor.dtype) for tensor in weights]
    return base.bytes + sum(count * (ITEM_BYTES[stored] - ITEM_BYTES[own]) for count, own in items)


def read_base(folder: Path) -> Base:
    """Config and tensor headers of a transformers folder.

    Raises:
        ModelError: no config, no safetensors, a shard missing or damaged, or quantised weights.
    """
    config = read_object(folder / "config.json", ModelError)
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantised (quantization_config): merge into the unquantised base model instead")
    index = folder / INDEX
    if index.is_file():
        weight_map = read_object(index, ModelError).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelError(f"{index} maps no tensor to a file (weight_map); fetch the model again")
        names = list(dict.fromkeys(weight_map.values()))
    else:
        weight_map, names = {}, [SINGLE]
    files = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}: expected a folder of safetensors weights; fetch the model again")
        header = read_header(folder / name, error=ModelError)
        files[name] = (header.tensors, header.metadata)
    model = Base(folder, config, files)
    lost = sorted(weight_map.keys() - model.tensors.keys())
    if lost:
        raise ModelError(
            f"{folder / weight_map[lost[0]]} does not hold {lost[0]}, as {INDEX} says; fetch the model again"
        )
    return model


def read_adapter(folder: Path, base: Base) -> tuple[dict[str, delta.Change], dict[str, StoredTensor]]:
    """The adapter's changes, known to fit the base, and its tensors by name.

    Raises:
        CheckpointError: damaged, of a kind that cannot be merged, or of another base.
    """
    config = read_object(folder / ADAPTER_CONFIG, CheckpointError)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS}: expected the folder that PEFT's save_pretrained writes"
        )
    stored = {tensor.name: tensor for tensor in read_header(folder / ADAPTER_WEIGHTS, error=CheckpointError).tensors}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    changes = delta.changes_of(config, shapes, model_type=str(base.config.get("model_type", "")))
    base_shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    changes = {stored_name(name, base_shapes) or name: change for name, change in changes.items()}
    if touches_ends(changes) and (embedding := tied_embedding(base)):
        base_shapes.setdefault(head_of(base, changes), base_shapes[embedding])
    delta.check_fits(changes, shapes, base_shapes)
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPE_NAMES.values():
            raise CheckpointError(f"adapter tensor {name} is stored as {tensor.dtype}, expected F32, BF16 or F16")
    return changes, stored


def touches_ends(changes: Collection[str]) -> bool:
    """Whether the input or the output embedding is among the changed weights."""
    return bool(find_by_end((*EMBEDDINGS, *HEADS), changes))


def head_of(base: Base, changes: Collection[str] = ()) -> str:
    """Name of the output embedding: as stored, else as the adapter calls it, else the usual one."""
    return find_by_end(HEADS, base.tensors) or find_by_end(HEADS, changes) or HEADS[0]


def tied_embedding(base: Base) -> str:
    """Name of the embedding that also serves as the head; empty where the model has a head of its own."""
    names = base.tensors
    if find_by_end(HEADS, names) and not _says_tied(base.config):
        return ""
    return find_by_end(EMBEDDINGS, names)


def _says_tied(config: dict[str, Any]) -> bool:
    """As config.json says, else as transformers takes it for this architecture; it is asked only then."""
    said = config.get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    return model_type in CONFIG_MAPPING and bool(CONFIG_MAPPING[model_type]().tie_word_embeddings)


def read_object(file: Path, error: type[LoraFlowError]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        LoraFlowError: of the type `error`: missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as cause:
        raise error(f"cannot read {file}: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{file} is not valid JSON ({cause}); fetch or train it again") from cause
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        raise error(f"{file}: expected a JSON object, found {found}")
    return value
