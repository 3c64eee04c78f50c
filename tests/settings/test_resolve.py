"""Names → presets, and Settings × Options × presets → a Plan, or every contradiction at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from steps.errors import ConfigError
from steps.settings import catalog, places
from steps.settings.catalog import (
    ALIASES,
    DatasetPreset,
    ModelPreset,
    find_dataset,
    find_model,
    preset_names,
    read_preset,
)
from steps.settings.checks import check_model, linear_names
from steps.settings.config import Settings, parse_options, parse_settings
from steps.settings.options import OPTIONS, Options
from steps.settings.places import config_root
from steps.settings.plan import Plan
from steps.settings.resolve import resolve


def plan_of(**options: Any) -> Plan:
    return resolve(Settings(), parse_options({"model": "tiny", **options}))


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert all(problem.path for problem in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("name", preset_names("models"))
def test_every_model_preset_is_valid(name: str) -> None:
    preset = find_model(name)
    assert preset.name == ALIASES.get(name, name)
    assert preset.title
    assert any((preset.hub, preset.path, preset.s3, preset.wheel, preset.random))


@pytest.mark.parametrize("name", preset_names("datasets"))
def test_every_dataset_preset_is_valid(name: str) -> None:
    preset = find_dataset(name)
    assert preset.name == name
    assert any((preset.hub, preset.path, preset.s3, preset.builtin))


@pytest.mark.parametrize("model", preset_names("models"))
@pytest.mark.parametrize("dataset", preset_names("datasets"))
def test_all_presets_fit_each_other(model: str, dataset: str) -> None:
    plan = resolve(Settings(), Options(model=model, dataset=dataset))
    assert plan.accumulation * plan.processes * plan.training.micro_batch == plan.training.global_batch
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_presets_of_an_installed_package_are_found_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "INSTALLED", tmp_path / "steps" / "_config")
    assert (config_root() / "models").is_dir()
    (tmp_path / "steps" / "_config").mkdir(parents=True)
    assert config_root() == tmp_path / "steps" / "_config"


@pytest.mark.parametrize("name", ["llama3.2-7b", "Llama3.2-7B"])
def test_llama_3_2_7b_is_refused_with_the_two_nearest_that_exist(name: str) -> None:
    message = refusal(find_model, name)
    assert "llama3.2-3b" in message
    assert "llama3.1-8b" in message


@pytest.mark.parametrize(
    ("given_name", "name", "hub"),
    [
        ("tatsu-lab/alpaca", "alpaca", "tatsu-lab/alpaca"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("meta-llama/Llama-3.2-1B", "llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("owner/___", "unnamed", "owner/___"),
    ],
)
def test_a_hub_id_may_hold_dots(given_name: str, name: str, hub: str) -> None:
    preset = find_model(given_name)
    assert (preset.name, preset.hub) == (name, hub)


def test_a_file_a_folder_and_an_s3_prefix_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "My data.v2.jsonl").write_text("{}")
    assert find_dataset(str(tmp_path / "My data.v2.jsonl")).name == "my-data.v2"
    assert find_dataset(str(tmp_path / "My data.v2.jsonl")).path == str(tmp_path / "My data.v2.jsonl")
    assert find_model(str(tmp_path)).path == str(tmp_path)
    assert find_model("s3://bucket/models/Llama-3.2-1B/").name == "llama-3.2-1b"
    assert find_model("s3://bucket/models/Llama-3.2-1B/").s3 == "s3://bucket/models/Llama-3.2-1B/"


@pytest.mark.parametrize(
    ("given_name", "words"),
    [
        pytest.param("", "names nothing; presets: llama3", id="empty"),
        pytest.param("  ", "names nothing", id="blank"),
        pytest.param("llama33", "unknown preset 'llama33' (did you mean 'llama3'", id="typo"),
        pytest.param("llama3.2-9b", "did you mean 'llama3.2-3b' or", id="typo-with-a-dot"),
        pytest.param("mine.jsonl", "no such file or folder: 'mine.jsonl'", id="missing-file"),
        pytest.param("owner/mine.jsonl", "no such file or folder", id="missing-file-like-a-hub-id"),
        pytest.param("./a/b/c", "no such file or folder", id="missing-folder"),
        pytest.param("~nosuchuser/x", "no such file or folder", id="unknown-user"),
        pytest.param("s3://", "expected an address like s3://bucket/prefix", id="no-bucket"),
        pytest.param("a\0b", "unknown preset", id="nul-byte"),
        pytest.param("a" * 5000, "unknown preset", id="longer-than-a-name-may-be"),
        pytest.param("owner/name\n", "no such file or folder", id="newline-after-a-hub-id"),
    ],
)
def test_a_name_that_means_nothing_is_refused(given_name: str, words: str) -> None:
    assert words in refusal(find_model, given_name)
    assert "hub id (owner/name) works too" in refusal(find_dataset, given_name)


def test_links_in_a_circle_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "no such file or folder" in refusal(find_model, str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("lora_rnk: 8", "my.yaml: lora_rnk: unknown setting (did you mean 'lora_rank'", id="unknown-key"),
        pytest.param("lora_rank: 0", "my.yaml: lora_rank: must be >= 1, got 0", id="out-of-range"),
        pytest.param("micro_batch: 0", "must be >= 1", id="would-divide-by-zero"),
        pytest.param("wheel: {package: x}", "my.yaml: wheel.file: must be given", id="incomplete-wheel"),
        pytest.param("wheel: {pakage: x}", "known here: package, file, sha256", id="unknown-key-in-wheel"),
        pytest.param("- a", "expected a mapping of settings, got list", id="list"),
        pytest.param("a: [", "cannot be read as YAML", id="broken-yaml"),
        pytest.param("[" * 600, "cannot be read as YAML", id="very-deep"),
        pytest.param(b"\xff\xfe\x00", "cannot be read as YAML", id="binary"),
        pytest.param(None, "cannot be read as YAML", id="missing"),
    ],
)
def test_a_mistake_in_a_preset_file_is_named(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    file = tmp_path / "my.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refusal(read_preset, file, ModelPreset)


def test_an_empty_preset_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("# nothing yet\n")
    assert read_preset(tmp_path / "my.yaml", DatasetPreset) == DatasetPreset(name="my")


def test_an_option_wins_over_the_data_preset_and_that_over_the_model_preset() -> None:
    assert plan_of(dataset="orders").sequence_length == 512
    assert plan_of(dataset="alpaca").sequence_length == find_model("tiny").sequence_length
    assert plan_of(dataset="orders", sequence_length=64).sequence_length == 64
    assert plan_of(dataset="orders").packing is False
    assert plan_of(dataset="orders", packing="on").packing is True
    assert plan_of(dataset="orders").max_steps == 12
    assert (plan_of(dataset="orders", epochs=2).max_steps, plan_of(dataset="orders", epochs=2).epochs) == (0, 2)
    assert plan_of(lora_rank=4).training.lora.alpha == 8
    assert plan_of(lora_targets=" q_proj, v_proj,").training.lora.targets == ("q_proj", "v_proj")
    assert plan_of(gradient_checkpointing="on").training.gradient_checkpointing is True
    assert plan_of(continue_from="17").continue_from == "17"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            {"global_batch": 5},
            "--global-batch: must be a multiple of processes × micro batch = 1 × 2 = 2, got 5; "
            "the nearest that fit are 4 and 6",
            id="batch-does-not-divide",
        ),
        pytest.param({"global_batch": 1}, "the nearest that fit are 2", id="batch-below-one-pass"),
        pytest.param({"global_batch": 10**400 + 1}, "the nearest that fit are 1000", id="batch-beyond-floats"),
        pytest.param(
            {"max_steps": 1, "epochs": 1}, "--epochs: give either --max-steps or --epochs", id="steps-and-epochs"
        ),
        pytest.param({"sharding": "fsdp"}, "--sharding: fsdp shards over processes and there is 1", id="fsdp-alone"),
        pytest.param(
            {"sharding": "fsdp", "quantization": "4bit", "processes": 2}, "--quantization: 4bit with", id="fsdp-4bit"
        ),
        pytest.param(
            {"method": "dora", "quantization": "4bit"}, "--method: dora with --quantization 4bit", id="dora-4bit"
        ),
        pytest.param({"lora_targets": ","}, "--lora-targets: names no module", id="no-targets"),
        pytest.param({"lora_targets": "all-linear,q_proj"}, "all-linear stands alone", id="all-and-one"),
        pytest.param(
            {"init_adapter": "/nowhere"}, "--init-adapter: no adapter_config.json in '/nowhere'", id="no-adapter"
        ),
        pytest.param({"init_adapter": "a\0"}, "--init-adapter: no adapter_config.json", id="adapter-with-nul"),
        pytest.param(
            {"model": "tinny", "dataset": "orderz"},
            "--dataset: unknown preset 'orderz' (did you mean 'orders'",
            id="both",
        ),
    ],
)
def test_a_contradiction_is_refused_before_anything_is_done(options: dict[str, Any], words: str) -> None:
    assert words in refusal(plan_of, **options)


def test_both_unknown_names_are_told_at_once() -> None:
    message = refusal(plan_of, model="tinny", dataset="orderz")
    assert "--model" in message
    assert "--dataset" in message


ADAPTER = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 24, "lora_dropout": 0.05, "target_modules": ["v_proj", "q_proj"],
    "use_rslora": True,
}  # fmt: skip


def adapter_in(folder: Path, **changes: Any) -> str:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | changes))
    return str(folder)


def test_an_adapter_to_start_from_decides_its_settings(tmp_path: Path) -> None:
    lora = plan_of(init_adapter=adapter_in(tmp_path)).training.lora
    assert lora.model_dump() == {
        "method": "rslora", "rank": 8, "alpha": 24.0, "dropout": 0.05, "targets": ("q_proj", "v_proj"),
        "init_adapter": str(tmp_path),
    }  # fmt: skip
    same = {"method": "rslora", "lora_rank": 8, "lora_alpha": 24, "lora_dropout": 0.05, "lora_targets": "q_proj,v_proj"}
    assert plan_of(init_adapter=str(tmp_path), **same).training.lora == lora


@pytest.mark.parametrize(
    ("option", "value", "there"),
    [
        ("method", "lora", "rslora"),
        ("lora_rank", 16, "8"),
        ("lora_alpha", 16, "24"),
        ("lora_dropout", 0.1, "0.05"),
        ("lora_targets", "q_proj", "q_proj,v_proj"),
    ],
)
def test_an_option_that_contradicts_the_adapter_is_refused(
    tmp_path: Path, option: str, value: object, there: str
) -> None:
    message = refusal(plan_of, init_adapter=adapter_in(tmp_path), **{option: value})
    assert f"--{option.replace('_', '-')}: is {value}" in message
    assert there in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "has peft_type None; training goes on from LORA adapters only"),
        ("[]", "has peft_type 'list'"),
        ("{", "cannot be read"),
        ('{"peft_type": "LORA"}', "is no LoRA adapter's that PEFT wrote"),
        ('{"peft_type": "LORA", "use_dora": true, "use_rslora": true}', "DoRA and rsLoRA together"),
    ],
)
def test_an_adapter_that_training_cannot_go_on_from_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    message = refusal(plan_of, init_adapter=str(tmp_path), sharding="fsdp")
    assert words in message
    assert "--sharding" in message


def test_alpha_by_default_gives_the_same_scale_for_lora_at_every_rank_and_does_not_grow_for_rslora() -> None:
    assert [plan_of(lora_rank=rank).training.lora.alpha for rank in (4, 16, 64)] == [8, 32, 128]
    assert [plan_of(method="rslora", lora_rank=rank).training.lora.alpha for rank in (4, 16, 64)] == [8, 8, 8]
    assert plan_of(method="rslora", lora_alpha=3).training.lora.alpha == 3


def test_a_plan_knows_what_a_person_gave() -> None:
    assert plan_of(global_batch=4, packing="on").given == ("model", "packing", "global_batch")


CONFIG = {"model_type": "llama", "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128}


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        pytest.param({"sequence_length": 1024}, CONFIG, "--sequence-length: must be <= 512", id="too-long"),
        *(
            pytest.param({"sequence_length": 1024}, {key: 512}, f"must be <= 512, the model's {key}, got 1024", id=key)
            for key in ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
        ),
        pytest.param(
            {"sequence_length": 1024}, {"text_config": CONFIG}, "must be <= 512", id="a model inside a wrapper"
        ),
        pytest.param(
            {"lora_targets": "q_prj,v_proj"},
            CONFIG,
            "has no module 'q_prj' (did you mean 'q_proj'",
            id="no-such-target",
        ),
        pytest.param(
            {"lora_rank": 65},
            CONFIG,
            "--lora-rank: must be <= 64, the model's hidden size, got 65",
            id="rank-too-large",
        ),
    ],
)
def test_a_plan_that_the_model_cannot_take_is_refused(
    options: dict[str, Any], config: dict[str, Any], words: str
) -> None:
    assert words in refusal(check_model, plan_of(**{"sequence_length": 64, **options}), config)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="fits"),
        pytest.param({}, id="says-nothing"),
        pytest.param({"model_type": ["x"], "max_position_embeddings": "many", "hidden_size": -1}, id="says-nonsense"),
        pytest.param({"model_type": "mamba"}, id="unknown-architecture"),
    ],
)
def test_a_plan_that_fits_or_cannot_be_judged_passes(config: dict[str, Any]) -> None:
    check_model(plan_of(sequence_length=64), config)
    check_model(plan_of(sequence_length=64, lora_targets="q_proj"), config)


def test_linear_modules_are_known_for_llama_like_models_only() -> None:
    assert "q_proj" in linear_names("llama")
    assert linear_names("mamba") == ()
    assert catalog.ALL_LINEAR == "all-linear"


words = st.sampled_from(
    ["auto", "tiny", "orders", "llama3.2-7b", "on", "4bit", "fsdp", "dora", "q_proj", "s3://b/k", "a/b"]
)
values = words | st.text(max_size=30) | st.integers(-2, 10**30) | st.floats() | st.booleans() | st.none()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@example({"model": "~root\0", "dataset": "\ud800", "init_adapter": "~nobody/x"})
@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), values, max_size=8))
def test_any_options_give_a_plan_or_a_config_error_with_paths(raw: dict[str, Any]) -> None:
    try:
        plan = resolve(Settings(), parse_options(raw))
    except ConfigError as error:
        assert error.problems  # noqa: PT017
        assert all(problem.path.startswith("--") and problem.message for problem in error.problems)  # noqa: PT017
    else:
        assert plan.accumulation >= 1


def on_cluster(mount: Path, *, steps_in_pods: bool) -> Settings:
    cluster = {"namespace": "team", "image": "lora:1", "mount_path": str(mount), "steps": {"enabled": steps_in_pods}}
    storage = {"root": f"{mount}/runs", "cache": f"{mount}/cache"}
    return parse_settings({"launcher": {"kind": "pytorchjob"}, "storage": storage, "cluster": cluster})


@pytest.mark.parametrize(
    ("folder", "steps_in_pods", "refused"),
    [
        pytest.param("fsx", True, [], id="on the shared file system"),
        pytest.param("home", True, ["--model", "--dataset"], id="elsewhere, and the steps are pods"),
        pytest.param(
            "home", False, ["--model"], id="elsewhere, and prepare runs here: the workers still load the model"
        ),
    ],
)
def test_what_the_pods_do_not_see_is_refused(
    tmp_path: Path, folder: str, steps_in_pods: bool, refused: list[str]
) -> None:
    (tmp_path / folder / "model").mkdir(parents=True)
    (tmp_path / folder / "rows.jsonl").write_text("{}")
    given = Options(model=str(tmp_path / folder / "model"), dataset=str(tmp_path / folder / "rows.jsonl"))
    settings = on_cluster(tmp_path / "fsx", steps_in_pods=steps_in_pods)
    if not refused:
        assert resolve(settings, given).dataset.path
        return
    with pytest.raises(ConfigError) as caught:
        resolve(settings, given)
    assert [problem.path for problem in caught.value.problems] == refused
    assert all("must lie below cluster.mount_path" in problem.message for problem in caught.value.problems)


def test_a_file_that_the_pod_does_not_find_is_explained(tmp_path: Path) -> None:
    told = refusal(resolve, on_cluster(tmp_path, steps_in_pods=True), Options(model="tiny", dataset="./mine.jsonl"))
    assert f"steps run in pods, which see {tmp_path} and no file of the machine that launched them" in told


def test_a_plan_of_version_0_1_is_read() -> None:
    """It is an artifact of every earlier run, and `resume` clones it; its training was written flat."""
    raw = json.loads(Path(__file__).with_name("plan-flat.json").read_text())
    plan = Plan.model_validate(raw)
    assert (plan.training.lora.rank, plan.training.seed, plan.training.scheduler) == (2, 7, "cosine")
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan
    with pytest.raises(ValidationError, match="lerning_rate"):
        Plan.model_validate({**raw, "lerning_rate": 1})


@pytest.mark.parametrize(
    ("config", "option", "expected"),
    [("auto", "auto", "auto"), ("fp32", "auto", "fp32"), ("fp32", "bf16", "bf16"), ("auto", "fp16", "fp16")],
)
def test_the_type_of_the_merged_weights_is_the_options_then_the_configs(
    config: str, option: str, expected: str
) -> None:
    settings = parse_settings({"merge": {"dtype": config}})
    plan = resolve(settings, parse_options({"model": "tiny", "merge_dtype": option}))
    assert plan.merge_dtype == expected
    assert plan.training == plan_of().training


def test_an_alias_is_the_preset_that_it_means_by_its_own_name() -> None:
    assert find_model("llama3") == find_model("llama3.1-8b")
    assert find_model("llama3").name == "llama3.1-8b"
    assert plan_of(model="llama3").training == plan_of(model="llama3.1-8b").training
