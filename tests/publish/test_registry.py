"""Versions in registries point to the publication, and are made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.errors import ConfigError, StorageError
from steps.publish.check import problems
from steps.publish.registry import Entry, group_of, in_mlflow, in_sagemaker, package_of
from steps.settings.config import parse_settings
from steps.settings.publish import Publish
from tests.publish.publish_harness import make_model, publish_to
from tests.report.standin import Server, serving

S3 = "s3://team/models"
ENTRY = Entry("shop", f"{S3}/shop/abc", "merged", {"digest": "abc", "gate": "passed: 0 % → 94 % (95 % interval)"})


@pytest.fixture
def mlflow() -> Iterator[Server]:
    """Versions by their source, as the real one keeps them."""
    with serving() as server:
        made: list[dict[str, Any]] = []

        def create(body: Any) -> Any:
            made.append({**body, "version": str(len(made) + 1)})
            return {"model_version": made[-1]}

        def search(body: Any) -> Any:
            return {"model_versions": [item for item in made if f"source_path='{item['source']}'" in body["filter"]]}

        server.answers = {"model-versions/create": create, "model-versions/search": search}
        yield server


def test_a_version_in_mlflow_points_to_the_address_once(mlflow: Server) -> None:
    assert [in_mlflow(mlflow.url, {}, ENTRY, "run-1") for _ in range(2)] == ["1", "1"]
    [body] = mlflow.bodies("model-versions/create")
    assert (body["name"], body["source"], body["run_id"]) == ("shop", f"{S3}/shop/abc/merged", "run-1")
    assert {"key": "digest", "value": "abc"} in body["tags"]


def test_a_model_that_is_registered_gets_another_version(mlflow: Server) -> None:
    mlflow.answers["registered-models/create"] = (400, {"error_code": "RESOURCE_ALREADY_EXISTS"})
    assert in_mlflow(mlflow.url, {}, ENTRY) == "1"
    mlflow.answers["registered-models/create"] = (403, {"error_code": "PERMISSION_DENIED", "message": "no"})
    with pytest.raises(StorageError, match=r"MLflow's registry .*PERMISSION_DENIED"):
        in_mlflow(mlflow.url, {}, ENTRY)


def test_a_package_in_sagemaker_points_to_the_address_once_and_waits_for_approval(aws: dict[str, str]) -> None:
    import boto3

    first = in_sagemaker(ENTRY, "")
    assert in_sagemaker(ENTRY, "") == first
    assert in_sagemaker(Entry("shop", f"{S3}/shop/def", "merged", {"digest": "d"}), "") != first
    client = boto3.client("sagemaker")
    told = client.describe_model_package(ModelPackageName=first)
    assert told["ModelApprovalStatus"] == "PendingManualApproval"
    assert told["CustomerMetadataProperties"]["gate"] == "passed: 0 - - 94 - -95 - interval-"
    assert len(client.list_model_packages(ModelPackageGroupName="shop")["ModelPackageSummaryList"]) == 2


def test_what_sagemaker_is_asked_is_valid_for_its_own_model(aws: dict[str, str]) -> None:
    import boto3
    from botocore.validate import ParamValidator

    shape = boto3.client("sagemaker").meta.service_model.operation_model("CreateModelPackage").input_shape
    asked = package_of(ENTRY, group_of("Shop 7B_v1.2"), "111122223333.dkr.ecr.us-west-2.amazonaws.com/vllm:1")
    assert not ParamValidator().validate(asked, shape).has_errors()
    [container] = asked["InferenceSpecification"]["Containers"]
    assert container["ModelDataSource"]["S3DataSource"]["S3Uri"] == f"{S3}/shop/abc/merged/"
    assert asked["ModelPackageGroupName"] == "Shop-7B-v1-2"


def test_a_published_model_is_registered_where_it_is_asked_for(bucket: Any, mlflow: Server, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    published = publish_to(tmp_path, made, s3=S3, registries=["mlflow", "sagemaker"], mlflow=mlflow.url)
    assert published.versions["mlflow"] == "tiny-orders/1"
    assert ":model-package/tiny-orders/1" in published.versions["sagemaker"]
    [body] = mlflow.bodies("model-versions/create")
    assert body["source"] == f"{published.addresses['s3']}/merged"
    assert publish_to(tmp_path, made, s3=S3, registries=["mlflow", "sagemaker"], mlflow=mlflow.url) == published


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"registries": ["mlflow"]}, "publish.registries: needs publish.s3"),
        ({"registries": ["sagemaker"], "s3": S3, "what": "adapter"}, "a package holds the merged model"),
        ({"image": "vllm:1", "s3": S3}, "publish.image: is SageMaker's"),
        ({"registries": ["hub"]}, "must be one of 'mlflow' or 'sagemaker'"),
    ],
)
def test_a_registry_that_cannot_be_is_a_mistake(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_settings({"publish": given})


def test_what_is_known_of_registries_before_a_training_is_told(
    bucket: Any, mlflow: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Publish(s3=S3, registries=("mlflow", "sagemaker"))
    assert problems(both, mlflow.url, {}) == []
    [(setting, words)] = problems(both, "", {})
    assert (setting, "no address" in words) == ("reporting.mlflow_uri", True)
    mlflow.status, mlflow.answers = 401, {}
    assert "answered 401" in problems(both, mlflow.url, {})[0][1]
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "no region" in problems(Publish(s3=S3, registries=("sagemaker",)), "", {})[-1][1]
