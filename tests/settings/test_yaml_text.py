"""YAML as it is read here: a key that stands twice is a mistake, and so is what may be a secret in what is printed."""

from __future__ import annotations

import pytest
import yaml

from steps.errors import ConfigError
from steps.settings.config import parse_settings
from steps.settings.yaml_text import read_yaml


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    with pytest.raises(yaml.YAMLError, match=r"'run' stands twice.*\n.*line 2"):
        read_yaml("run: {model: tiny}\nrun: {dataset: a.jsonl}\n")
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}\n") == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize(
    "raw",
    [
        {"reporting": {"mlflow_uri": "https://user:SECRET@host"}},
        {"reporting": {"mlflow_uri": "HTTPS://SECRET@host"}},
        {"reporting": {"otlp_endpoint": "https://host/?token=SECRET"}},
        {"reporting": {"notify": {"address_from": "https://hooks.slack.com/SECRET"}}},
        {"publish": {"s3": "s3://AKIA:SECRET@bucket/x"}},
        {"publish": {"hub": "hf_SECRET:team/x"}},
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(raw)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: 2024-13-45", "[" * 20_000])
def test_what_python_cannot_hold_is_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)


def test_a_flow_that_would_start_itself_without_end_is_refused() -> None:
    deployment = {"project": "team", "announce": "done", "trigger": {"event": "done", "of_project": True}}
    with pytest.raises(ConfigError, match="announce is the event of its own trigger"):
        parse_settings({"deployment": deployment})
