# ruff: noqa: E501  (one mistake, one line: the tables are read down)
"""Mistakes of people in data, base models and adapters: each with the words that it must be answered with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps.base.inspect import inspect
from steps.base.sources.random import write_tiny
from steps.base.sources.weights import Tensor, write_file
from steps.merge.stage import merge
from steps.prepare.stage import prepare
from steps.protocol.records import Adapter, BaseModel, PreparedData
from steps.protocol.rundir import RunDir
from steps.settings.catalog import RandomModel
from tests.project.mistake_words import assert_tells
from tests.shared.sample_records import ADAPTER, BASE, plan_of

SMALL = RandomModel(hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=32, max_positions=64)


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_tiny(folder, SMALL)
    return folder


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """A whole model folder, to be spoilt."""
    return Path(shutil.copytree(whole_model, tmp_path / "my-model"))


def record_at(folder: Path, *, digest: str = BASE.digest) -> BaseModel:
    return BaseModel("tiny", str(folder), f"file:{folder}", "1", digest, "llama", 1000, 4000, "fp32")


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def chat(*turns: tuple[object, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


PAIR = {"question": "What is 2 and 2?", "answer": "4"}
OTHER = {"question": "What is 3 and 3?", "answer": "6"}
U, A = ("user", "hi"), ("assistant", "ho")
# fmt: off
DATA: dict[str, tuple[str, bytes, dict[str, Any], list[str]]] = {
    "an empty file": ("a.jsonl", b"", {}, ["a.jsonl is empty (0 bytes)"]),
    "a file of empty lines": ("a.jsonl", b"\n\n", {}, ["a.jsonl", "no rows"]),
    "an empty array": ("a.json", b"[]", {}, ["a.json", "no rows"]),
    "a header alone": ("a.csv", b"question,answer\n", {}, ["a.csv", "no rows"]),
    "one row": ("a.jsonl", lines(PAIR), {}, ["1 distinct sample", "at least 2"]),
    "the same row nine times": ("a.jsonl", lines(*[PAIR] * 9), {}, ["1 distinct sample", "duplicates count once"]),
    "columns that nobody knows": ("a.jsonl", lines({"poem": "a"}), {}, ["a.jsonl:1", "no known shape", "found poem", "question_answer (question, answer)", "columns:"]),
    "a column that is not there": ("a.jsonl", lines(PAIR), {"columns": {"answer": "anwser"}}, ["columns.answer", "no column 'anwser'", "did you mean 'answer'", "found answer, question"]),
    "a part that nobody knows": ("a.jsonl", lines(PAIR), {"columns": {"anser": "answer"}}, ["columns.anser: unknown part", "did you mean 'answer'", "parts are"]),
    "another shape than asked for": ("a.jsonl", lines(PAIR), {"shape": "alpaca"}, ["not the shape alpaca", "needed: alpaca (instruction, output)"]),
    "no answer anywhere": ("a.jsonl", lines({**PAIR, "answer": ""}, {**OTHER, "answer": None}), {}, ["no usable conversation", "2 with no answer", "a.jsonl:1"]),
    "no question anywhere": ("a.jsonl", lines({**PAIR, "question": " "}), {}, ["no usable conversation", "1 with no question"]),
    "broken JSON in line 2": ("a.jsonl", lines(PAIR) + b'{"question": \n', {}, ["a.jsonl:2", "not valid JSON"]),
    "an array in a line": ("a.jsonl", lines(PAIR, [1]), {}, ["a.jsonl:2", "expected a JSON object, found an array"]),
    "an object for an array": ("a.json", b'{"data": [{"a": 1}]}', {}, ["a.json:1", "no known shape", "found a"]),
    "an object about the data": ("a.json", b'{"about": ["a"], "b": 1}', {}, ["one JSON object", "keys about, b", "expected an array"]),
    "an array that breaks off": ("a.json", b'[{"question": "1", "answer": "2"},\n{"a": ', {}, ["a.json:2", "not valid JSON"]),
    "numbers for rows": ("a.json", b"[1, 2]", {}, ["row 1", "found a number"]),
    "a ragged row": ("a.csv", b"question,answer\n1,2\n1,2,3\n", {}, ["a.csv:3", "expected 2 fields (question, answer), found 3"]),
    "a short row": ("a.csv", b"question,answer\n1\n", {}, ["a.csv:2", "expected 2 fields", "found 1"]),
    "a column twice": ("a.csv", b"question,question\n1,2\n", {}, ["a.csv:1", "'question' stands twice"]),
    "Latin-1": ("a.jsonl", '{"question": "é"}'.encode("latin-1"), {}, ["a.jsonl:1", "not UTF-8", "0xe9", "iconv"]),
    "UTF-16 that breaks off": ("a.jsonl", '{"question": "a"}'.encode("utf-16")[:-1], {}, ["a.jsonl", "begins as UTF-16 and is not"]),
    "preference data": ("a.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), {}, ["a.jsonl:1", "preference data, for DPO", "completion=chosen"]),
    "texts with classes": ("a.jsonl", lines({"text": "a", "label": 1}), {}, ["no known shape", "found label, text"]),
    "a column nearly right": ("a.csv", b"Questoin,Answer\n1,2\n", {}, ["a.csv:2", "'Questoin' (did you mean 'question'"]),
    "cp1252 from a spreadsheet": ("a.csv", "question;answer\n1;é\n".encode("cp1252"), {}, ["a.csv:2", "0xe9 at column 3", "WINDOWS-1252"]),
    "weights that are no switch": ("a.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}), {}, ["weight is neither 0 nor 1"]),
    "nothing that is learned": ("a.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}), {}, ["no answer that is learned"]),
    "calls that the template does not print": ("a.jsonl", lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{"function": {"name": "look_up", "arguments": "{}"}}]}]}), {}, ["the model's chat template refuses: it prints no tool_calls"]),
    "NUL bytes": ("a.jsonl", lines(PAIR) + b"\0\0\n", {}, ["a.jsonl:2", "NUL"]),
    "an unknown suffix": ("a.xml", b"<a/>", {}, ["a.xml", "expected a file with one of .json", "found .xml"]),
    "Parquet that is none": ("a.parquet", b"PAR1", {}, ["a.parquet", "not a readable Parquet file"]),
    "an unknown role": ("a.jsonl", lines(chat(("teacher", "hi"), A)), {}, ["no usable conversation", "the role 'teacher'", "known are system", "user"]),
    "the assistant first": ("a.jsonl", lines(chat(A, U)), {}, ["no usable conversation", "no question"]),
    "a question without an answer": ("a.jsonl", lines(chat(U)), {}, ["no usable conversation", "no answer"]),
    "a picture in a content": ("a.jsonl", lines(chat(("user", [{"type": "image_url"}]), A)), {}, ["parts that are not text (image_url)"]),
    "messages as text": ("a.jsonl", lines({"messages": "hi"}), {}, ["no usable conversation", "no list of messages"]),
    "a message that is text": ("a.jsonl", lines({"messages": ["hi", "ho"]}), {}, ["no usable conversation", "no list of messages"]),
}
# fmt: on


def prepare_file(path: Path, model: Path, run: Path, *, preset: dict[str, Any], **options: Any) -> PreparedData:
    plan = plan_of(**{"dataset": str(path), "sequence_length": 64, "global_batch": 2, **options})
    plan = plan.model_copy(update={"dataset": plan.dataset.model_copy(update=preset)})
    return prepare(plan, record_at(model), RunDir(run), cache=run / "cache")


@pytest.mark.parametrize(("name", "content", "preset", "words"), DATA.values(), ids=DATA)
def test_a_mistake_in_the_data_is_answered(
    whole_model: Path, tmp_path: Path, name: str, content: bytes, preset: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_tells(lambda: prepare_file(tmp_path / name, whole_model, tmp_path / "run", preset=preset), words)


def test_rows_that_are_all_too_long_are_answered_with_the_length_that_works(whole_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR, OTHER))
    assert_tells(
        lambda: prepare_file(tmp_path / "a.jsonl", whole_model, tmp_path / "run", preset={}, sequence_length=4),
        ["longer than the sequence", "sequence_length=4", "use --sequence-length"],
    )


def test_a_folder_without_data_is_answered_with_what_it_holds(whole_model: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.md").write_text("x")
    assert_tells(
        lambda: prepare_file(tmp_path / "data", whole_model, tmp_path / "run", preset={}),
        ["holds no data file", ".jsonl", "found notes.md"],
    )


def test_a_full_disk_and_a_file_in_the_way_are_answered(whole_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR, OTHER))
    (tmp_path / "file").write_text("")
    plan = plan_of({"storage": {"min_free_gib": 1e9}}, dataset=str(tmp_path / "a.jsonl"), sequence_length=64)
    assert_tells(
        lambda: prepare(plan, record_at(whole_model), RunDir(tmp_path / "run"), cache=tmp_path),
        ["preparing the data needs", "storage.min_free_gib", "GiB are free", "set storage.root to another disk"],
    )
    assert_tells(
        lambda: prepare_file(tmp_path / "a.jsonl", whole_model, tmp_path / "file" / "run", preset={}),
        [str(tmp_path / "file" / "run"), "is a file, not a folder", "set storage.root elsewhere"],
    )


def test_a_file_for_the_run_directory_is_answered(whole_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR, OTHER))
    (tmp_path / "file").write_text("")
    assert_tells(
        lambda: prepare_file(tmp_path / "a.jsonl", whole_model, tmp_path / "file", preset={}),
        [str(tmp_path / "file"), "a file stands where a folder has to be", "move it away"],
    )


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["no safetensors", "it holds config.json"],
    ),
    "pickles only": (only_pickles, ["only pytorch_model.bin", "safetensors", "convert"]),
    "weights cut off": (cut_off, ["model.safetensors", "cut off", "expected", "found"]),
    "a shard lost": (lost_shard, ["1 missing", "model-2.safetensors", "fetch them again"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["no tokenizer", "tokenizer.json", "beside"]),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ["no config.json", "expected a transformers model"],
    ),
    "a broken config": (lambda folder: (folder / "config.json").write_text("{"), ["not valid JSON", "fetch the model"]),
    "a config of something else": (lambda folder: (folder / "config.json").write_text("{}"), ["names no model_type"]),
    "an adapter for a base": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        ["is a PEFT adapter, not a base model", "--model", "--init-adapter"],
    ),
    "a folder that is gone": (shutil.rmtree, ["does not exist", "expected a folder with config.json"]),
}


@pytest.mark.parametrize(("spoil", "words"), MODELS.values(), ids=MODELS)
def test_a_folder_that_is_no_model_is_answered(model: Path, spoil: Callable[[Path], object], words: list[str]) -> None:
    spoil(model)
    assert_tells(lambda: inspect(model), [str(model), *words])


def test_a_tokenizer_that_is_none_is_answered(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR, OTHER))
    assert_tells(
        lambda: prepare_file(tmp_path / "a.jsonl", model, tmp_path / "run", preset={}),
        ["tokenizer.json is no tokenizer", "fetch the model again"],
    )


def write_adapter(folder: Path, *, rank: int = 2, width: int = 16, module: str = "q_proj", **config: Any) -> Path:
    """A LoRA adapter of one module, in PEFT's format."""
    name = f"base_model.model.model.layers.0.self_attn.{module}"
    down, up = np.ones((rank, width), np.float32), np.ones((width, rank), np.float32)
    folder.mkdir(exist_ok=True)
    tensors = [
        Tensor(f"{name}.lora_A.weight", down.shape, lambda: down),
        Tensor(f"{name}.lora_B.weight", up.shape, lambda: up),
    ]
    write_file(folder / "adapter_model.safetensors", tensors, dtype="F32")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": [module], **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def no_weights(folder: Path) -> None:
    (write_adapter(folder) / "adapter_model.safetensors").unlink()


def half_of_it(folder: Path) -> None:
    path = write_adapter(folder) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


ADAPTERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "of a wider base": (lambda folder: write_adapter(folder, width=24), ["does not belong to this base", "shape", "merge it with the model"]),
    "of another family": (lambda folder: write_adapter(folder, module="c_attn"), ["does not belong to this base", "c_attn", "the base does not have"]),
    "with another rank than it says": (lambda folder: write_adapter(folder, r=8), ["says rank 8", "not of the same adapter"]),
    "of another kind": (lambda folder: write_adapter(folder, peft_type="IA3"), ["cannot be merged", "IA3", "merge_and_unload"]),
    "without weights": (no_weights, ["no adapter_model.safetensors", "save_pretrained"]),
    "cut off": (half_of_it, ["adapter_model.safetensors"]),
    "of nothing": (lambda folder: folder.mkdir(), ["adapter_config.json"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_cannot_be_merged_is_answered(
    whole_model: Path, tmp_path: Path, make: Callable[[Path], object], words: list[str]
) -> None:
    make(tmp_path / "adapter")
    adapter = merge_input(tmp_path / "adapter")
    plan = plan_of({"storage": {"min_free_gib": 0}})
    assert_tells(lambda: merge(plan, record_at(whole_model), adapter, RunDir(tmp_path / "run"), lineage={}), words)
    assert not list((tmp_path / "run").glob("merged-*"))


def merge_input(folder: Path, **parents: str) -> Adapter:
    return dataclasses.replace(ADAPTER, path=str(folder), parents=parents)


def test_an_adapter_of_another_base_and_no_room_for_a_merge_are_answered(whole_model: Path, tmp_path: Path) -> None:
    folder, base = write_adapter(tmp_path / "adapter"), record_at(whole_model)
    run = RunDir(tmp_path / "run")
    assert_tells(
        lambda: merge(plan_of(), base, merge_input(folder, base="c" * 64), run, lineage={}),
        ["was trained on the base with digest cccc", "has digest bbbb", "merge it with its own base, or train again"],
    )
    plan = plan_of({"storage": {"min_free_gib": 1e9}})
    assert_tells(
        lambda: merge(plan, base, merge_input(folder), run, lineage={}),
        ["the merged model needs", "storage.min_free_gib", "set storage.root to another disk"],
    )
    assert not list(run.path.glob("merged-*"))
