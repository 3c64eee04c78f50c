"""Several data sets named in one option, a list or a preset, and every way to name them wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.flow.same_training import differences
from steps.settings.config import Settings, parse_options, parse_settings
from steps.settings.mixture import absolute, find_data, source_names
from steps.settings.plan import Plan
from steps.settings.resolve import resolve


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data files in the working directory, one of them with a colon in its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c:1.jsonl"):
        (tmp_path / name).write_text('{"question": "q", "answer": "a"}\n')
    return tmp_path


def refusal(given: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(Settings(), parse_options({"model": "tiny", "dataset": given, **options}))
    return str(caught.value)


def parts(given: str) -> list[tuple[str, float | None, int | None]]:
    return [(part.dataset, part.weight, part.max_rows) for part in find_data(given).mixture]


def test_weights_stand_behind_the_names_and_colons_of_names_stay() -> None:
    assert parts("a.jsonl:0.7, orders:0.3") == [("a.jsonl", 0.7, None), ("orders", 0.3, None)]
    assert parts("openai/gsm8k:main:2,c:1.jsonl:1") == [("openai/gsm8k:main", 2.0, None), ("c:1.jsonl", 1.0, None)]
    assert parts("openai/gsm8k:main,s3://bucket/x,c:1.jsonl") == [
        ("openai/gsm8k:main", None, None), ("s3://bucket/x", None, None), ("c:1.jsonl", None, None)
    ]  # fmt: skip
    assert not find_data("c:1.jsonl").mixture


def test_a_list_gives_caps_and_columns_and_stands_in_a_config_and_in_a_preset(here: Path) -> None:
    listed = [{"dataset": "a.jsonl", "weight": 2, "max_rows": 10, "columns": {"question": "question"}}, "orders:1"]
    wanted = [("a.jsonl", 2.0, 10), ("orders", 1.0, None)]
    assert parts(json.dumps(listed)) == wanted
    settings = parse_settings({"run": {"dataset": listed}})
    assert parts(str(settings.run["dataset"])) == wanted
    (here / "mine").mkdir()
    (here / "mine" / "mix.yaml").write_text(f"mixture: {json.dumps([{**listed[0], 'dataset': '../a.jsonl'}, {'dataset': 'orders', 'weight': 1}])}\nmax_steps: 7\n")  # type: ignore[dict-item]  # fmt: skip  # noqa: E501
    preset = find_data("mine/mix.yaml")
    assert (preset.name, preset.max_steps) == ("mix", 7)
    assert preset.mixture[0].preset and preset.mixture[0].preset.path == str(here / "a.jsonl")  # noqa: PT018


def test_what_the_sources_say_together_decides_and_the_plan_is_read_back() -> None:
    plan = resolve(Settings(), parse_options({"model": "tiny", "dataset": "a.jsonl:1,orders:1", "columns": "system=s"}))
    assert plan.dataset.name == "a-orders"
    assert (plan.sequence_length, plan.packing, plan.max_steps, plan.epochs) == (512, False, 0, 1.0)
    assert [preset.columns for preset in plan.dataset.sources] == [{"system": "s"}] * 2
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.jsonl:0,b.jsonl:1", ["'a.jsonl:0'", "must be above 0"]),
        ("a.jsonl:-1,b.jsonl:nan", ["'a.jsonl:-1'", "'b.jsonl:nan'"]),
        ("a.jsonl:inf,b.jsonl:1", ["must be above 0"]),
        ("a.jsonl:much,b.jsonl:1", ["expected a number as its weight, got 'much'"]),
        ("a.jsonl:0.7,b.jsonl", ["for all data sets or for none", "b.jsonl has none"]),
        ("a.jsonl:1,./a.jsonl:2", ["stands in the mixture 2 times"]),
        ("a.jsonl:1,,b.jsonl:1", ["names nothing between two commas"]),
        ("a.jsonl:1,absent.jsonl:1,alpacca:1", ["no such file or folder: 'absent.jsonl'", "did you mean 'alpaca'"]),
        ("a.jsonl:0.7", ["a weight needs several data sets"]),
        ("[1", ["begins as a JSON list and is none"]),
        ("[]", ["two data sets or more, got 0"]),
        ('["a.jsonl:1"]', ["two data sets or more, got 1"]),
        (
            '[{"dataset": "a.jsonl", "weight": 0}, {"weight": 1}, 3]',
            ["--dataset[0].weight: must be > 0", "--dataset[1].dataset: must be given", "--dataset[2]"],
        ),
        ('[{"dataset": "a.jsonl", "wieght": 1}, "b.jsonl"]', ["did you mean 'weight'"]),
    ],
)  # fmt: skip
def test_every_mistake_in_a_mixture_is_told(given: str, words: list[str]) -> None:
    found = refusal(given)
    for word in words:
        assert word in found


def test_presets_that_want_different_templates_need_a_word_which(here: Path) -> None:
    for name, template in (("one", "x.jinja"), ("two", "y.jinja")):
        (here / template).write_text("{{ messages }}")
        (here / f"{name}.yaml").write_text(
            f"path: {'a' if name == 'one' else 'b'}.jsonl\nchat_template: {here / template}\n"
        )
    assert "--chat-template: the mixture's presets want different ones (one: " in refusal("one.yaml:1,two.yaml:1")
    resolve(
        Settings(), parse_options({"model": "tiny", "dataset": "one.yaml:1,two.yaml:1", "chat_template": "x.jinja"})
    )


def test_a_mixture_in_a_mixture_is_refused(here: Path) -> None:
    (here / "mix.yaml").write_text("mixture: [{dataset: a.jsonl}, {dataset: b.jsonl}]\n")
    assert "is a mixture itself" in refusal("mix.yaml:1,orders:1")
    (here / "mix.yaml").write_text("hub: a/b\nmixture: [{dataset: a.jsonl}, {dataset: b.jsonl}]\n")
    assert "a mixture and a source of its own" in refusal("mix.yaml")


def test_what_a_run_keeps_of_a_mixture_means_the_same_in_any_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = absolute("a.jsonl:0.7,orders:0.3")
    monkeypatch.chdir("/")
    assert parts(kept) == [(str(here / "a.jsonl"), 0.7, None), ("orders", 0.3, None)]
    assert absolute("orders") == "orders"


def test_a_source_has_its_files_name_wherever_the_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "other").mkdir()
    (here / "other" / "a.jsonl").write_text("{}")
    assert source_names(find_data("a.jsonl,orders,c:1.jsonl")) == ["a.jsonl", "orders", "c:1.jsonl"]
    assert source_names(find_data("a.jsonl,other/a.jsonl,b.jsonl")) == [
        f"{here}/a.jsonl",
        f"{here}/other/a.jsonl",
        "b.jsonl",
    ]
    given = {"model": "tiny", "dataset": "a.jsonl:0.7,orders:0.3"}
    first = resolve(Settings(), parse_options(given))
    kept = absolute(given["dataset"])
    monkeypatch.chdir("/")
    again = resolve(Settings(), parse_options({**given, "dataset": kept}))
    assert source_names(first.dataset) == source_names(again.dataset) == ["a.jsonl", "orders"]
    assert differences(first, again) == []
    other = resolve(Settings(), parse_options({**given, "dataset": kept.replace("0.7", "0.6")}))
    assert [problem.path for problem in differences(first, other)] == ["--dataset"]
