"""Where a model comes from, in one plain dict; and what is made of it for tables, tags and a shell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.flow import lineage
from steps.flow.lineage import build, example_prompt, flat, plan_facts, tags
from tests.shared.sample_records import ADAPTER, BASE, REPORT, plan_of, prepared_of


def build_from(**options: Any) -> dict[str, Any]:
    return build(
        plan_of(**options),
        BASE,
        prepared_of(),
        ADAPTER,
        code={"digest": "c"},
        pathspec="LoraFlow/7",
        libraries={"torch": "2"},
    )


def test_the_lineage_names_code_settings_base_data_and_adapter() -> None:
    lineage = build_from(seed=5)
    assert json.loads(json.dumps(lineage)) == lineage
    assert (lineage["run"], lineage["code"]) == ("LoraFlow/7", {"digest": "c"})
    assert (lineage["base"]["digest"], lineage["base"]["revision"]) == (BASE.digest, "r1")
    assert (lineage["data"]["name"], lineage["data"]["fingerprint"]) == ("orders", "f" * 64)
    assert (lineage["training"]["seed"], lineage["training"]["steps"], lineage["training"]["loss"]) == (
        5,
        30,
        [3.5, 0.5],
    )
    assert lineage["adapter"] == {"digest": ADAPTER.digest, "identity": "id1"}


@pytest.mark.parametrize(
    ("files", "fingerprint"),
    [([], "f" * 64), (["a" * 64 + "  rows.jsonl"], "a" * 64), (["a" * 64 + "  a.csv", "b" * 64 + "  b.csv"], "f" * 64)],
)
def test_the_fingerprint_of_one_file_is_what_sha256sum_shows(files: list[str], fingerprint: str) -> None:
    prepared = prepared_of(files=files)
    data = build(plan_of(), BASE, prepared, ADAPTER, code={}, pathspec="LoraFlow/7", libraries={})["data"]
    assert (data["fingerprint"], data["files"]) == (fingerprint, files)


def test_the_digest_of_the_settings_changes_with_any_of_them() -> None:
    assert build_from() == build_from()
    assert build_from(seed=1)["settings_digest"] != build_from(seed=2)["settings_digest"]


def test_a_flat_lineage_joins_keys_with_dots() -> None:
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_the_facts_that_a_reader_asks_for_first() -> None:
    facts = plan_facts(plan_of(lora_rank=4, quantization="4bit", packing="on"), prepared_of(packed=True))
    assert facts["data"] == "1,200 samples of builtin:orders"
    assert str(facts["method"]).startswith("lora, rank 4, alpha 8")
    assert str(facts["precision"]).endswith(", base in 4bit")
    assert str(facts["sequence length"]).endswith(", packed")
    assert "warm-up 10%" in str(facts["learning rate"])
    assert "base in" not in str(plan_facts(plan_of(), prepared_of())["precision"])
    untitled = plan_of().model_copy(update={"model": plan_of().model.model_copy(update={"title": ""})})
    assert plan_facts(untitled, prepared_of())["model"] == "tiny"


def test_pages_on_the_hub_are_named_where_there_are_any() -> None:
    facts = plan_facts(plan_of(model="smollm2-135m", dataset="alpaca"), prepared_of())
    assert facts["base model on the hub"] == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
    assert facts["data on the hub"] == "https://huggingface.co/datasets/tatsu-lab/alpaca"
    assert not [key for key in plan_facts(plan_of(), prepared_of()) if "hub" in key]


def test_tags_make_a_run_findable() -> None:
    begun = ["model:tiny", "dataset:orders", "method:lora", "state:train"]
    assert tags(plan_of(), "train") == begun
    assert tags(plan_of(), "done", REPORT) == [*begun[:3], "state:done", "score:0.938", "gate:passed"]
    assert "gate:failed" in tags(plan_of(), "done", replace(REPORT, gate_passed=False))


def prompt_from(folder: Path, line: str) -> str:
    (folder / "samples.jsonl").write_text(line, encoding="utf-8")
    return example_prompt(replace(REPORT, path=str(folder)))


@pytest.mark.parametrize(
    "line",
    ["", "{", '{"answer": 1}', "[]", '{"prompt": " "}'],
    ids=["empty", "cut-off", "no-prompt", "list", "blank"],
)
def test_without_a_usable_sample_the_example_says_hello(tmp_path: Path, line: str) -> None:
    assert prompt_from(tmp_path, line) == "Hello"
    assert example_prompt(replace(REPORT, path=str(tmp_path / "nowhere"))) == "Hello"


def test_the_example_is_the_prompt_on_one_line(tmp_path: Path) -> None:
    text = 'cost `$HOME`! "5" \\n $(id)'
    assert prompt_from(tmp_path, json.dumps({"prompt": f" {text}\n\tand more"})) == f"{text} and more"


def test_libraries_image_and_the_runs_that_it_goes_on_with_are_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert lineage.run_of(str(tmp_path)) == lineage.run_of("") == ""
    (tmp_path / "lineage.json").write_text('{"run": "LoraFlow/5"}')
    assert lineage.run_of(str(tmp_path)) == "LoraFlow/5"
    found = build(plan_of(), BASE, prepared_of(), ADAPTER, code={}, pathspec="LoraFlow/7", libraries={"torch": "2"})
    assert (found["libraries"], found["image"]) == ({"torch": "2"}, "")
    assert "continued_from" not in found


@pytest.mark.parametrize("ui", ["http://ui", "http://ui/"])
def test_the_card_links_to_the_runs_that_a_lineage_names(ui: str) -> None:
    made = {"run": "LoraFlow/7", "continued_from": "5", "training": {"init_adapter_run": "LoraFlow/3"}}
    assert lineage.links(made, ui) == {
        "this run": "http://ui/LoraFlow/7",
        "continued from": "http://ui/LoraFlow/5",
        "adapter started from": "http://ui/LoraFlow/3",
    }
    assert lineage.links({"run": "LoraFlow/7", "continued_from": "/some/folder"}, ui) == {
        "this run": "http://ui/LoraFlow/7"
    }
    assert lineage.links(made, "") == {}
