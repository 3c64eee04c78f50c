"""Base folder + adapter folder → merged folder, as transformers reads and writes them.

`merge_folders` decides which file gets which tensor and hands the bytes to `stream`. It writes into the directory it is given;
it does not sync, lock or rename: `stage` does that around it. It needs nothing of this project but the errors, and starts fast.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from steps import machine
from steps.errors import ModelError
from steps.merge import delta, stream
from steps.merge.inputs import INDEX, Base, head_of, read_adapter, read_base, read_object, tied_embedding, touches_ends
from steps.protocol.safetensors_header import DTYPE_NAMES, StoredTensor, lay_out
from steps.protocol.weight_names import EMBEDDINGS, UNPREFIXED

MAX_PROCESSES = 16
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""What a model folder holds beside its weights: configs, tokenizer, chat template, licence."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a merge wrote."""

    tensors: int
    merged_tensors: int
    """Of these, changed by the adapter."""
    bytes: int
    """Of the weight files."""
    dtype: str
    """torch's name of the type that most weights have: bfloat16, float16 or float32."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the merged model: whose bytes it begins as, and what is added to them."""

    name: str
    source: StoredTensor
    dtype: str
    low_rank: delta.LowRank | None


def merge_folders(
    base: Path,
    adapter: Path,
    out: Path,
    dtype: str = "auto",
    *,
    processes: int = 0,
    done: Callable[[int], None] | None = None,
) -> Counts:
    """Write the merged model into `out`, which is made, or empty.

    `dtype` is bfloat16, float16 or float32, or auto: each tensor keeps the base's. `processes` 0: one per core that this process
    may use. `done` gets the bytes written so far. In bf16 and fp16 the result is the correctly rounded fp32 sum. In fp32 it has
    PEFT's bits: torch is imported for it, and one whole weight at a time is in memory. Where the base ties its head to its
    embedding and the adapter changes one of them, they are untied, so that the merged model computes what the adapted one does.
    (PEFT's own merge changes both.)

    Raises:
        ModelError: the base is incomplete, damaged or quantised.
        CheckpointError: the adapter is damaged, of a kind that cannot be merged, or of another base.
        OSError: reading or writing failed.
    """
    if dtype != "auto" and dtype not in DTYPE_NAMES:
        raise ModelError(f"cannot merge to {dtype!r}; expected auto, {', '.join(DTYPE_NAMES)}")
    model = read_base(base)
    changes, adapter_tensors = read_adapter(adapter, model)
    outputs, untied = plan_outputs(model, changes, adapter_tensors, DTYPE_NAMES.get(dtype))
    out.mkdir(parents=True, exist_ok=True)
    exact = any(item.low_rank and item.dtype == "F32" for item in chain(*outputs.values()))
    tasks, total = _create_files(out, model, outputs, exact_as_torch=exact)
    copy_small_files(base, out)
    counts = _counts(outputs, changes, total)
    _write_config(out, model.config, counts.dtype if dtype != "auto" else None, untied=untied)
    cores = min(machine.cores(), MAX_PROCESSES)
    stream.run(
        tasks,
        adapter_tensors,
        processes=1 if exact else processes or cores,  # torch brings its own threads
        exact_as_torch=exact,
        done=done,
    )
    return counts


def plan_outputs(
    base: Base, changes: Mapping[str, delta.Change], adapter: Mapping[str, StoredTensor], dtype: str | None
) -> tuple[dict[str, list[Output]], bool]:
    """The merged model's tensors by weight file, and whether head and embedding had to be untied.

    Raises:
        ModelError: a weight to be changed is stored in a type that cannot be added to.
    """
    embedding = tied_embedding(base) if touches_ends(changes) else ""
    head, prefix = head_of(base, changes), _prefix(base, embedding) if embedding else ""
    outputs: dict[str, list[Output]] = {}
    for file, (tensors, _) in base.files.items():
        sources = [(tensor.name, tensor) for tensor in tensors if not (embedding and tensor.name == head)]
        if embedding:
            sources += [(head, tensor) for tensor in tensors if tensor.name == embedding]
        outputs[file] = [
            _output(name if name == head else prefix + name, tensor, changes.get(name, delta.Change()), adapter, dtype)
            for name, tensor in sources
        ]
    return outputs, bool(embedding)


def _prefix(base: Base, embedding: str) -> str:
    """What files of a model saved without its head lack before every name: with a head in them, they are read as they are named.

    Raises:
        ModelError: which prefix this architecture has is not known.
    """
    if embedding not in EMBEDDINGS:
        return ""
    model_type = str(base.config.get("model_type", ""))
    if model_type not in UNPREFIXED:
        raise ModelError(
            f"{base.folder}: its files name {embedding} without a prefix, so that a head of its own cannot be added for "
            f"{model_type}; train without the embeddings among --lora-targets"
        )
    return UNPREFIXED[model_type]


def _output(
    name: str, tensor: StoredTensor, change: delta.Change, adapter: Mapping[str, StoredTensor], dtype: str | None
) -> Output:
    is_weight = tensor.dtype in DTYPE_NAMES.values()
    if not is_weight and change != delta.Change():
        raise ModelError(
            f"{tensor.file}: {name} is stored as {tensor.dtype}; only BF16, F16 and F32 weights can be merged"
        )
    source = adapter[change.replacement] if change.replacement else tensor
    return Output(name, source, dtype if dtype and is_weight else tensor.dtype, change.low_rank)


def _create_files(
    out: Path, base: Base, outputs: Mapping[str, Sequence[Output]], *, exact_as_torch: bool
) -> tuple[list[stream.Task], int]:
    """Make the weight files at their full size, and the index; the tasks that fill them, and their bytes in all."""
    tasks_of_files, written, total = [], [], 0
    for file, items in outputs.items():
        shapes = [(item.name, item.dtype, item.source.shape) for item in items]
        header, places = lay_out(out / file, shapes, base.files[file][1])
        size = len(header) + sum(place.bytes for place in places)
        stream.create(out / file, header, size)
        total += size
        written += places
        tasks_of_files.append(
            [
                task
                for item, place in zip(items, places, strict=True)
                for task in stream.tasks_for(item.source, place, item.low_rank, exact_as_torch=exact_as_torch)
            ]
        )
    if (base.folder / INDEX).is_file():
        _write_index(out, written, read_object(base.folder / INDEX, ModelError).get("metadata", {}))
    return list(_in_turn(tasks_of_files)), total


def _in_turn(per_file: Sequence[Sequence[stream.Task]]) -> Iterator[stream.Task]:
    """One task of each file after the other: two that write to one file wait for each other."""
    return (task for turn in zip_longest(*per_file) for task in turn if task)


def _write_index(out: Path, written: Sequence[StoredTensor], metadata: Mapping[str, Any]) -> None:
    total = sum(tensor.bytes for tensor in written)
    weight_map = {tensor.name: tensor.file.name for tensor in sorted(written, key=lambda tensor: tensor.name)}
    _write_object(out / INDEX, {"metadata": {**metadata, "total_size": total}, "weight_map": weight_map})


def copy_small_files(base: Path, out: Path) -> None:
    """Config, tokenizer, chat template and licence files, as they are; the weight index is written anew."""
    for pattern in SMALL_FILES:
        for file in sorted(base.glob(pattern)):
            if file.is_file() and file.name != INDEX:
                shutil.copyfile(file, out / file.name)


def _write_config(out: Path, config: Mapping[str, Any], dtype: str | None, *, untied: bool) -> None:
    changed = dict(config)
    if dtype:
        changed["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if untied:
        changed["tie_word_embeddings"] = False
    if changed != config:
        _write_object(out / "config.json", changed)


def _counts(outputs: Mapping[str, Sequence[Output]], changes: Mapping[str, delta.Change], total: int) -> Counts:
    items = list(chain(*outputs.values()))
    stored = [item.dtype for item in items]
    common = max(DTYPE_NAMES, key=lambda name: stored.count(DTYPE_NAMES[name]))
    return Counts(len(items), len(changes), total, common)


def _write_object(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
