"""Settings and options: every mistake in one ConfigError, whatever is given."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.errors import ConfigError, LoraFlowError
from steps.settings.config import Settings, parse_options, parse_settings
from steps.settings.options import OPTIONS, Options, help_of
from steps.settings.section import LONGEST_SHOWN, Section, suggest, validate

ROOT = Path(__file__).resolve().parents[2]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.dates()
    | st.just(10**4000)
)
known_names = st.sampled_from([*Settings.model_fields, *OPTIONS, "root", "keep", "every_steps", "literal["])
keys = known_names | st.text(max_size=8) | st.integers() | st.none()
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))


def message_of(error: ConfigError) -> str:
    assert error.problems
    for problem in error.problems:
        assert problem.path
        assert problem.message
        assert str(problem) in str(error)
    return str(error)


@settings(deadline=None, max_examples=60)
@given(junk)
def test_any_yaml_gives_settings_or_a_config_error_with_a_path(raw: object) -> None:
    try:
        assert isinstance(parse_settings(raw), Settings)
    except ConfigError as error:
        message_of(error)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(known_names, junk, max_size=6))
def test_known_sections_with_strange_values_give_settings_or_a_config_error(raw: dict[str, Any]) -> None:
    try:
        assert isinstance(parse_settings(raw), Settings)
    except ConfigError as error:
        message_of(error)


@settings(deadline=None, max_examples=60)
@given(junk)
def test_any_parameters_give_options_or_a_config_error_with_a_path(raw: Any) -> None:
    try:
        assert isinstance(parse_options(raw), Options)
    except ConfigError as error:
        assert all(problem.path.startswith("--") for problem in error.problems)  # noqa: PT017
        message_of(error)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param([1], "(top level): expected a mapping of settings, got list", id="list-at-the-top"),
        pytest.param({"retry": None}, "retry: must be a mapping of settings, got None", id="empty-section"),
        pytest.param(
            {"retry": {"max_atempts": 3}}, "retry.max_atempts: unknown setting (did you mean 'max_attempts'", id="typo"
        ),
        pytest.param({"retri": {}}, "did you mean 'retry'", id="typo-in-a-section"),
        pytest.param({"zzz": 1}, "zzz: unknown setting; known here: storage, launcher", id="unknown-near-nothing"),
        pytest.param({"": 1}, "'': unknown setting", id="empty-key"),
        pytest.param({"literal[": 1}, "literal[: unknown setting", id="key-like-pydantics-own"),
        pytest.param({3: 1}, "3: keys should be strings", id="number-as-key"),
        pytest.param({"retry": {"max_attempts": 0}}, "retry.max_attempts: must be >= 1, got 0", id="too-small"),
        pytest.param({"deadlines": {"exit_s": 0}}, "deadlines.exit_s: must be > 0.0, got 0", id="not-positive"),
        pytest.param(
            {"deadlines": {"exit_s": float("nan")}}, "must be > 0.0, got nan|finite number, got nan", id="nan"
        ),
        pytest.param(
            {"retry": {"max_attempts": "many"}}, "retry.max_attempts: input should be a valid integer", id="wrong-type"
        ),
        pytest.param(
            {"merge": {"dtype": "int8"}},
            "must be one of 'auto', 'bf16', 'fp16' or 'fp32', got 'int8'",
            id="no-such-word",
        ),
        pytest.param(
            {"reporting": {"report_to": "wandb"}},
            "reporting.report_to: must be a list, got 'wandb'",
            id="word-for-list",
        ),
        pytest.param(
            {"reporting": {"report_to": ["x"]}}, "reporting.report_to.0: must be one of 'tensorboard'", id="in-a-list"
        ),
        pytest.param({"storage": {"root": "x" * 900 + "\0", "a": 1}}, "storage.a: unknown setting", id="second-key"),
        pytest.param({"storage": {"root": ["x" * 900]}}, "… (904 characters)", id="long-value-is-cut"),
        pytest.param({"storage": {"root": 10**5000}}, "got a int too large to show", id="number-too-long-to-write"),
    ],
)
def test_a_mistake_in_the_settings_is_named(raw: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(raw)
    assert any(part in message_of(caught.value) for part in words.split("|"))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param({"lora_rank": -8}, "--lora-rank: must be >= 0, got -8", id="too-small"),
        pytest.param({"lora_rank": 2000}, "--lora-rank: must be <= 1024, got 2000", id="too-large"),
        pytest.param({"warmup_ratio": 1.0}, "--warmup-ratio: must be < 1", id="not-below"),
        pytest.param({"lora_rnk": 8}, "--lora-rnk: unknown setting (did you mean 'lora_rank'", id="typo"),
        pytest.param(
            {"scheduler": "cosin"}, "--scheduler: must be one of 'auto', 'cosine', 'linear' or 'constant'", id="word"
        ),
        pytest.param(
            {"packing": True}, "--packing: must be one of 'auto', 'on' or 'off', got True", id="bool-for-word"
        ),
        pytest.param({"dry_run": "maybe"}, "--dry-run: input should be a valid boolean", id="no-bool"),
        pytest.param({"model": None}, "--model: input should be a valid string, got None", id="none"),
        pytest.param(["model"], "--: expected a mapping of settings, got list", id="list"),
    ],
)
def test_a_mistake_in_the_options_is_named_as_on_the_command_line(raw: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(raw)
    assert words in message_of(caught.value)
    assert len(caught.value.problems) == 1


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"retry": {"max_attempts": 0}, "storag": {}, "merge": {"dtype": 3}})
    assert [problem.path for problem in caught.value.problems] == ["retry.max_attempts", "merge.dtype", "storag"]
    assert isinstance(caught.value, LoraFlowError)


def test_no_settings_are_the_defaults() -> None:
    assert parse_settings(None) == parse_settings({}) == parse_settings(MappingProxyType({})) == Settings()


def test_local_yaml_shows_the_defaults() -> None:
    assert parse_settings(yaml.safe_load((ROOT / "config" / "local.yaml").read_text())) == Settings()


@pytest.mark.parametrize(
    ("file", "sections"),
    [("local.yaml", set(Settings.model_fields) - {"cluster"}), ("hyperpod.yaml", {"cluster"})],
    ids=["this machine", "cluster"],
)
def test_the_shipped_configs_show_every_setting(file: str, sections: set[str]) -> None:
    shown = yaml.safe_load((ROOT / "config" / file).read_text())
    missing = [
        f"{section}.{name}"
        for section, values in Settings().model_dump().items()
        for name in values
        if section in sections and name not in shown.get(section, {})
    ]
    assert missing == []


def test_no_option_defaults_to_none_since_argo_would_send_the_word_null() -> None:
    assert [name for name in OPTIONS if getattr(Options(), name) is None] == []


def test_every_option_says_what_it_does() -> None:
    assert [name for name in OPTIONS if not help_of(name)] == []


def test_every_setting_says_what_it_is() -> None:
    sections = [section for _, section in Settings() if isinstance(section, Section)]
    undescribed = [
        f"{type(section).__name__}.{name}"
        for section in sections
        for name, field in type(section).model_fields.items()
        if not field.description
    ]
    assert undescribed == []


class Inner(Section):
    size: int


class Outer(Section):
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(
            {"maybe": {"sise": 1}},
            "maybe.sise: unknown setting (did you mean 'size'?); known here: size",
            id="optional",
        ),
        pytest.param({"many": [{"sise": 1, "size": 1}]}, "many.0.sise: unknown setting", id="list-of-sections"),
        pytest.param({"maybe": {}}, "maybe.size: must be given", id="missing"),
    ],
)
def test_mistakes_in_nested_sections_have_their_path(raw: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, raw, prefix="")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [("keap", " (did you mean 'keep'?)"), ("zzzz", ""), ("", "")],
    ids=["near", "far", "empty"],
)
def test_the_nearest_name_is_suggested(given_name: str, expected: str) -> None:
    assert suggest(given_name, ["keep", "every_steps"]) == expected


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="×a\0", min_size=LONGEST_SHOWN + 1, max_size=3000))
def test_a_long_value_does_not_hide_the_sentence(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options({"lora_rank": value})
    assert len(str(caught.value)) < 2 * LONGEST_SHOWN + 200


def test_prices_of_an_earlier_config_are_read_where_they_stood() -> None:
    old = parse_settings({"launcher": {"kind": "local", "price_per_node_hour": 2.5, "currency": "EUR"}})
    assert old == parse_settings({"prices": {"node_hour": 2.5, "currency": "EUR"}})
    assert parse_settings(old.model_dump(mode="json")) == old
    with pytest.raises(ConfigError, match=r"prices\.node_hour: must be >= 0.0, got -1"):
        parse_settings({"launcher": {"price_per_node_hour": -1}})


def test_prices_in_both_places_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"launcher\.price_per_node_hour: unknown setting"):
        parse_settings({"launcher": {"price_per_node_hour": 2.5}, "prices": {"node_hour": 3}})
