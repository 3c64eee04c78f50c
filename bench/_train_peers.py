"""How others train the same rows: a plain transformers Trainer + peft script, and TRL's SFTTrainer. `train` runs it as a process.

    python -m bench._train_peers plain|trl CASE.json            (or under torchrun)

Written as their own documentation does it: rows shuffled and padded to the longest of a batch, default allocator and optimizer.
Each rank leaves `<tool>-<rank>.json` beside the case: seconds at the end of each step, real tokens of each micro-batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps.protocol.prepared import IGNORED_LABEL, PreparedRows

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def main(argv: list[str]) -> int:
    """Train with one tool."""
    tool, path = argv[0], Path(argv[1])
    case = json.loads(path.read_text())
    trainer = {"plain": plain, "trl": trl}[tool](case, path.parent / f"{tool}-output")
    tokens: list[int] = []
    trainer.data_collator = counted(trainer.data_collator, tokens)
    ends_s: list[float] = []
    trainer.add_callback(clock(ends_s))
    trainer.train()
    rank = trainer.args.process_index
    (path.parent / f"{tool}-{rank}.json").write_text(json.dumps({"ends_s": ends_s, "tokens": tokens}))
    return 0


def plain(case: dict[str, Any], output: Path) -> Any:
    """The script that everybody writes."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype), lora(case))
    model.config.use_cache = False
    arguments = TrainingArguments(output_dir=str(output), remove_unused_columns=False, **shared(case))
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in read_rows(case)]
    return Trainer(model, arguments, train_dataset=rows, data_collator=padded)


def trl(case: dict[str, Any], output: Path) -> Any:
    """TRL on rows that are tokenised already; it packs them itself where asked."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(
        [
            {"input_ids": ids, "completion_mask": [int(label != IGNORED_LABEL) for label in labels]}
            for ids, labels in read_rows(case)
        ]
    )
    settings = SFTConfig(
        output_dir=str(output),
        max_length=case["sequence_length"],
        packing=case["packed"],
        completion_only_loss=True,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "bfloat16" if case["precision"] == "bf16" else "float32"},
        **shared(case),
    )
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    return SFTTrainer(case["model"], settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora(case))


def shared(case: dict[str, Any]) -> dict[str, Any]:
    """Settings that are the same for both, and for us."""
    import torch

    return {
        "max_steps": case["steps"],
        "per_device_train_batch_size": case["micro_batch"],
        "gradient_accumulation_steps": case["accumulation"],
        "learning_rate": case["learning_rate"],
        "lr_scheduler_type": "cosine",
        "bf16": case["precision"] == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": 42,
    }


def lora(case: dict[str, Any]) -> Any:
    """The same adapter as ours."""
    from peft import LoraConfig

    return LoraConfig(
        r=case["rank"],
        lora_alpha=case["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def read_rows(case: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of unpacked rows: those that we train on, or all where they are still to be packed."""
    prepared = PreparedRows.open(Path(case["rows"]))
    picked = range(len(prepared.rows)) if case["packed"] else prepared.order
    return [(row.input_ids.tolist(), row.labels.tolist()) for row in (prepared.rows.row(int(at)) for at in picked)]


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded on the right to the longest."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def pad(key: str, filler: int) -> Any:
        return torch.tensor([row[key] + [filler] * (width - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", IGNORED_LABEL),
        "attention_mask": torch.tensor(mask),
    }


def counted(collate: Collate, tokens: list[int]) -> Collate:
    """The collator, noting how many real tokens each micro-batch holds."""

    def count(rows: list[dict[str, Any]]) -> dict[str, Any]:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return count


def clock(ends_s: list[float]) -> Any:
    """A callback that notes when each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Trainer's own hook."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            """After the optimizer."""
            ends_s.append(time.perf_counter())

    return Clock()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
