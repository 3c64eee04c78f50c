"""Tiny random models, a prepared directory and records, made in place, for the tests of the evaluate room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steps.base.sources.random import write_tiny
from steps.evaluate.loss import IGNORED, Sample
from steps.evaluate.measure import load_model
from steps.protocol.prepared import HELD_OUT, MANIFEST, ORDER, ROWS, VALIDATION, digest_files
from steps.protocol.records import Adapter, BaseModel, MergedModel, PreparedData, digest_of
from steps.settings.catalog import RandomModel

PREFIX = list(range(40, 60))
"""What a chat template and an instruction are to real prompts: the beginning that all of them share."""
LENGTHS = (3, 17, 9, 1, 30, 8, 12)


def write_model(folder: Path, *, seed: int = 0, max_positions: int = 2048) -> Path:
    """A random Llama whose weights are large enough that its answers differ from prompt to prompt."""
    write_tiny(folder, RandomModel(seed=seed, max_positions=max_positions))
    model, _ = load_model(folder, precision="fp32")
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.data *= 6
    model.save_pretrained(folder)
    return folder


def token_rows(*, seed: int = 0, shared: bool = True) -> list[list[int]]:
    """Rows of very different lengths, with a common beginning or without."""
    rng = np.random.default_rng(seed)
    return [(PREFIX if shared else []) + rng.integers(3, 500, length).tolist() for length in LENGTHS]


def alone(model: Any, prompt: list[int], *, ends: frozenset[int], most: int) -> list[int]:
    """transformers' own greedy search on one prompt, end token left out."""
    import torch

    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return found[:-1] if found and found[-1] in ends else found


def target_sample(row: list[int], first: int) -> Sample:
    return Sample(row, [IGNORED] * first + row[first:])


def plain_loss(model: Any, samples: list[Sample]) -> float:
    """One sample at a time, all logits."""
    import torch

    total, count = 0.0, 0
    for one in samples:
        with torch.inference_mode():
            logits = model(torch.tensor([one.input_ids]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(one.labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return total / count


def write_prepared(folder: Path, tokenizer: Any, answers: Sequence[str], *, score: str = "json_fields") -> PreparedData:
    """A prepared directory with one held-out sample per answer; no training rows that anyone reads."""
    folder.mkdir(parents=True)
    lines, ids, masks = [], [], []
    for number, answer in enumerate(answers):
        prompt = f"<|im_start|>user\nWhat is order {number}?<|im_end|>\n<|im_start|>assistant\n"
        asked, said = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f"{answer}<|im_end|>"))
        messages = [
            {"role": "user", "content": f"What is order {number}?"},
            {"role": "assistant", "content": answer},
        ]
        lines.append({"messages": messages, "prompt": prompt, "prompt_ids": asked, "reference": answer})
        ids.append(asked + said)
        masks.append([0] * len(asked) + [1] * len(said))
    (folder / HELD_OUT).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in (ROWS, VALIDATION):
        _write_arrow(folder / name, ids, masks)
    np.save(folder / ORDER, np.arange(1))
    files = digest_files(folder)
    counts = (
        "samples train_samples validation_samples duplicates skipped truncated_samples truncated_tokens rows tokens"
    )
    record = PreparedData(
        path=str(folder), identity="prepared", digest=digest_of(files), fingerprint="f", source="test", shape="test",
        score=score, target_tokens=1, sequence_length=64, packed=False, fill=1.0, steps=1, global_batch=1,
        **{**dict.fromkeys(counts.split(), 1), "validation_samples": len(answers)},
    )  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps({"record": record.to_dict(), "files": files}))
    return record


def _write_arrow(path: Path, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> None:
    import pyarrow as pa

    table = pa.table(
        {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "loss_mask": pa.array(masks, pa.list_(pa.uint8())),
            "lengths": pa.array([[len(row)] for row in ids], pa.list_(pa.int32())),
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def base_record(folder: Path) -> BaseModel:
    return BaseModel("tiny", str(folder), "random:0", "r", "base-digest", "llama", 1, 1, "fp32")


def merged_record(folder: Path) -> MergedModel:
    return MergedModel(str(folder), "merged", "merged-digest", "fp32", 1, 1, 1, 0.1)


def adapter_record() -> Adapter:
    return Adapter("nowhere", "adapter", "adapter-digest", "lora", 8, 1, 1, 2.0, 1.0, None, 1, 1)
