"""What is told before a training begins of the places to publish to; and what follows the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError
from steps.flow import deciding, publishing, stages
from steps.flow.lineage import with_addresses
from steps.publish.check import problems
from steps.publish.stage import name_of
from steps.settings.config import parse_settings
from steps.settings.publish import Publish
from tests.publish.publish_harness import make_model, publish_to
from tests.shared.sample_records import REPORT, plan_of

S3 = "s3://team/models"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"s3": "team/models"}, "must be a bucket and a prefix"),
        ({"s3": "s3:///models"}, "must be a bucket and a prefix"),
        ({"s3": "s3://"}, "must be a bucket and a prefix"),
        ({"name": "a/b"}, "publish.name"),
        ({"hub": "orders"}, "must be a repository's id, owner/name"),
        ({"what": "all"}, "must be one of 'merged', 'adapter' or 'both'"),
        ({"where": S3}, "publish.where: unknown setting"),
    ],
)
def test_a_mistake_in_the_section_is_named(given: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_settings({"publish": given})


def test_nothing_is_asked_of_anybody_unless_something_is_to_be_published() -> None:
    assert problems(Publish()) == []
    assert not Publish().is_wanted


def test_a_bucket_that_is_there_is_fine_and_one_that_is_not_is_named(bucket: Any) -> None:
    assert problems(Publish(s3=S3)) == []
    [(setting, words)] = problems(Publish(s3="s3://nobodys/models"))
    assert (setting, words) == ("publish.s3", "there is no bucket nobodys: make it, or correct the name")


def test_a_store_out_of_reach_is_named(aws: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    [(_, words)] = problems(Publish(s3=S3))
    assert "EndpointConnectionError" in words


def test_missing_credentials_and_a_tracker_without_address_are_told_together(
    aws: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = plan_of({"publish": {"s3": S3}, "reporting": {"report_to": ["mlflow"]}})
    with pytest.raises(ConfigError) as failed:
        deciding.check_addresses(plan)
    assert [problem.path for problem in failed.value.problems] == ["reporting.mlflow_uri", "publish.s3"]


@pytest.mark.parametrize(
    ("publish", "inference", "passed", "step"),
    [
        ({}, False, True, "stop"),
        ({}, True, True, "compile"),
        ({"s3": S3}, False, True, "publish"),
        ({"s3": S3}, True, True, "publish"),
        ({"s3": S3}, False, False, "stop"),
        ({"s3": S3}, True, False, "compile"),
    ],
)
def test_only_what_passed_is_followed_by_the_publish_step(
    publish: dict[str, str], inference: bool, passed: bool, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of({"publish": publish, "inference": {"enabled": inference}}).model_dump(mode="json")
    assert stages.after_evaluation(plan, replace(REPORT, gate_passed=passed).to_dict()) == step
    assert ("nothing is published" in capsys.readouterr().out) == (bool(publish) and not passed)
    assert stages.after_publishing(plan) == ("compile" if inference else "stop")


def test_the_name_is_the_given_one_or_made_of_model_and_data() -> None:
    assert name_of(plan_of()) == "tiny-orders"
    assert name_of(plan_of({"publish": {"name": "shop-7b"}})) == "shop-7b"


def test_lineage_and_words_tell_where_it_lies(bucket: Any, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    published = publish_to(tmp_path, made, s3=S3)
    told = with_addresses(made.lineage, published)["published"]
    assert told == {"name": "tiny-orders", "digest": published.digest, "s3": published.addresses["s3"]}
    assert publishing.describe(published, "LoraFlow/7") == [f"published: s3, {published.addresses['s3']}"]
    assert "equal files were published by LoraFlow/7" in publishing.describe(published, "LoraFlow/8")[0]
