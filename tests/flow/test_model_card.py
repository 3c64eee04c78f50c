"""The model card: front matter that the hub reads, and nothing in it that acts, whatever the names."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.flow.lineage import build
from steps.flow.model_card import Kind, Made, front_matter, license_of, model_card, write_cards
from steps.protocol.records import MergedModel
from tests.flow.cards.samples import HOSTILE, UNSEEN
from tests.shared.sample_records import ADAPTER, BASE, REPORT, plan_of, prepared_of

MERGED = MergedModel("/run/merged", "id3", "m" * 64, "bfloat16", 10, 4, 1000, 1.0)
KINDS = pytest.mark.parametrize("kind", ["adapter", "merged"])


def made(*, model: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None, **changes: Any) -> Made:
    plan = plan_of()
    update = {
        "model": plan.model.model_copy(update=model or {}),
        "dataset": plan.dataset.model_copy(update=dataset or {}),
    }
    plan = plan.model_copy(update=update)
    lineage = build(plan, BASE, prepared_of(), ADAPTER, code={"digest": "c"}, pathspec="LoraFlow/7", libraries={})
    return replace(Made(plan, BASE, ADAPTER, MERGED, lineage, REPORT), **changes)


def head_of(card: str) -> dict[str, Any]:
    head = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(head, dict)
    return head


def code_of(card: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    told = made(model={"hub": "someone/small", "license": "apache-2.0"}, dataset={"hub": "tatsu-lab/alpaca"})
    (tmp_path / "README.md").write_text(model_card("merged", told), "utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license, data.datasets) == ("someone/small", "apache-2.0", ["tatsu-lab/alpaca"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    (score, loss, perplexity) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_type) == ("exact match", 0.9375, "tatsu-lab/alpaca")
    assert [loss.metric_type, perplexity.metric_type] == ["loss", "perplexity"]


@KINDS
def test_what_is_not_known_is_left_out(kind: Kind) -> None:
    head = front_matter(kind, made(report=None))
    assert head.keys() == {"library_name", "pipeline_tag", "tags"}
    assert head["library_name"] == ("peft" if kind == "adapter" else "transformers")


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "x/<script>", "a b/c", f"o/{'x' * 200}", "o/n\nlicense: mit"])
def test_a_name_that_no_hub_has_is_no_base_model(name: str) -> None:
    head = front_matter("merged", made(model={"hub": name}, dataset={"hub": name}))
    assert "base_model" not in head
    assert "datasets" not in head


@KINDS
@pytest.mark.parametrize(
    "text", [*HOSTILE, UNSEEN, "---\nlicense: mit\n---", "a: b # c", "'\"", "- x", "{a: b}", "!!python/x"]
)
def test_whatever_the_names_the_card_is_valid_and_shows_them_as_text(kind: Kind, text: str) -> None:
    report = replace(REPORT, score_name=text, details={"words": text})
    told = made(model={"title": text}, dataset={"title": text, "name": text}, report=report, prompt=text)
    told = replace(told, base=replace(BASE, name=text, source=f"file:{text}"), lineage={"data": {text: text}})
    card = model_card(kind, told)
    card.encode("utf-8")
    head = head_of(card)
    assert head["model-index"][0]["results"][0]["dataset"]["name"]
    assert "license" not in head
    body = re.sub(r"^```python\n.*?^```$", "", card.split("---\n", 2)[2], flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"<[a-z/!]", body)
    assert not re.search(r"(?<!\\)\]\(", body)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} <= {3, 4}
    ast.parse(code_of(card))


def test_the_example_asks_the_samples_prompt_as_a_string() -> None:
    prompt = 'quote " and\nnewline ``` {x} \\ '
    tree = ast.parse(code_of(model_card("merged", made(prompt=prompt))))
    assert prompt in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert '"content": "Hello"' in model_card("merged", made(prompt="x" * 5000))


def test_the_example_generates_as_the_evaluation_did() -> None:
    unset = {"max_new_tokens": 0}
    assert "max_new_tokens=256)" in model_card("merged", made(dataset=unset, report=None))
    assert "max_new_tokens=99)" in model_card("merged", made(dataset={"max_new_tokens": 99}, report=None))
    measured = replace(REPORT, details={"max_new_tokens": 77})
    assert "max_new_tokens=77)" in model_card("merged", made(dataset=unset, report=measured))
    plan = made().plan.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})
    card = model_card("adapter", made(report=measured, plan=plan))
    assert "apply_chat_template(messages, **{'enable_thinking': False}, add_generation_prompt=True" in card
    ast.parse(code_of(card))


def test_scores_come_with_the_report(tmp_path: Path) -> None:
    folders = {"adapter": tmp_path / "adapter", "merged": tmp_path / "merged"}
    for folder in folders.values():
        folder.mkdir()
    told = made(report=None)
    told = replace(
        told,
        adapter=replace(ADAPTER, path=str(folders["adapter"])),
        merged=replace(MERGED, path=str(folders["merged"])),
    )
    write_cards(told)
    for folder in folders.values():
        assert "Results" not in (folder / "README.md").read_text("utf-8")
        assert "evaluation" not in json.loads((folder / "lineage.json").read_text())
    write_cards(replace(told, report=REPORT))
    for folder in folders.values():
        card = (folder / "README.md").read_text("utf-8")
        assert "## Results on 32 held-out samples" in card
        assert "| exact match | 0.0% | 93.8% |" in card
        lineage = json.loads((folder / "lineage.json").read_text())
        assert (lineage["evaluation"]["tuned_score"], lineage["evaluation"]["score"]) == (0.9375, "exact match")
        assert lineage["training"]["targets"]
        assert {"dropout", "sequence_length", "packed"} <= lineage["training"].keys()


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [mit]\n---\n", ""),
        ('---\nlicense: "mit\'>"\n---\n', ""),
        ("---\n{: bad\n---\n", ""),
        ("# no front matter\n---\nlicense: mit\n---\n", ""),
        ("", ""),
    ],
)
def test_the_licence_is_the_bases_own(tmp_path: Path, readme: str, expected: str) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert license_of(plan_of(), tmp_path) == expected


def test_the_presets_licence_comes_first(tmp_path: Path) -> None:
    plan = plan_of(model="smollm2-135m")
    assert license_of(plan, tmp_path) == "apache-2.0"
    assert license_of(plan_of(), tmp_path / "gone") == ""
