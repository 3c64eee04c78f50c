"""Versions in a model registry that point to a publication in S3: MLflow's, and SageMaker's. Nothing is copied.

A version is found again by the address that it points to, so telling it twice makes no second one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.publish.bucket import MANIFEST, code_of
from steps.report.mlflow import MLflow, Server, server_of
from steps.report.sink import Facts, Refused, ReportError
from steps.s3 import aws_errors

LONGEST_GROUP = 63
LONGEST_METADATA = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """What a version tells of the model."""

    name: str
    address: str
    """Of the publication, s3://…"""
    part: str
    """Of it, what is loaded: `merged` or `adapter`."""
    tags: Mapping[str, str]
    """Digest, run and gate."""

    @property
    def source(self) -> str:
        """The folder that is loaded."""
        return f"{self.address}/{self.part}"


def in_mlflow(address: str, environment: Mapping[str, str], entry: Entry, run_id: str = "") -> str:
    """The version in MLflow's registry that points to the entry, made if there is none. `run_id`: of the training's run there.

    Raises:
        StorageError: the server refused or cannot be reached.
    """
    try:
        return _mlflow_version(server_of(address, environment), entry, run_id)
    except ReportError as error:
        raise StorageError(
            f"MLflow's registry has no version of {entry.name}: {error}; `resume` tries again"
        ) from error


def _mlflow_version(server: Server, entry: Entry, run_id: str) -> str:
    try:
        server.post("registered-models/create", {"name": entry.name})
    except Refused as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
    question = f"name='{entry.name}' and source_path='{entry.source}'"
    if found := (server.get("model-versions/search", filter=question) or {}).get("model_versions"):
        return str(found[0]["version"])
    tags = [{"key": key, "value": value} for key, value in entry.tags.items()]
    asked = {"name": entry.name, "source": entry.source, "tags": tags, **({"run_id": run_id} if run_id else {})}
    return str(server.post("model-versions/create", asked)["model_version"]["version"])


def run_in_mlflow(address: str, environment: Mapping[str, str], experiment: str, key: str) -> str:
    """MLflow's id of a training's run; empty: it was not told of it.

    Raises:
        StorageError: the server refused or cannot be reached.
    """
    try:
        return MLflow(Facts(key, Path()), server_of(address, environment), experiment).find()
    except ReportError as error:
        raise StorageError(
            f"MLflow cannot be asked for the run of the training: {error}; `resume` tries again"
        ) from error


def in_sagemaker(entry: Entry, image: str, client: Any = None) -> str:
    """The model package that points to the entry, made if there is none; its ARN. It waits for somebody's approval.

    Raises:
        StorageError: SageMaker refused or cannot be reached.
    """
    import boto3

    with aws_errors(f"the model package of {entry.address}", service="SageMaker"):
        sagemaker = client or boto3.client("sagemaker")
        group = group_of(entry.name)
        _make_group(sagemaker, group)
        pages = sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=group)
        for package in (item for page in pages for item in page["ModelPackageSummaryList"]):
            if package.get("ModelPackageDescription") == entry.source:
                return str(package["ModelPackageArn"])
        return str(sagemaker.create_model_package(**package_of(entry, group, image))["ModelPackageArn"])


def _make_group(sagemaker: Any, group: str) -> None:
    try:
        with aws_errors(group, service="SageMaker"):
            sagemaker.describe_model_package_group(ModelPackageGroupName=group)
    except StorageError as error:
        if not code_of(error):  # not refused, but out of reach
            raise
        sagemaker.create_model_package_group(ModelPackageGroupName=group)


def group_of(name: str) -> str:
    """The name as SageMaker takes it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:LONGEST_GROUP].rstrip("-")


def package_of(entry: Entry, group: str, image: str) -> dict[str, Any]:
    """What `create_model_package` is asked."""
    files = {"S3Uri": f"{entry.source}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"ModelDataSource": {"S3DataSource": files}, **({"Image": image} if image else {})}
    quality = {"ContentType": "application/json", "S3Uri": f"{entry.address}/{MANIFEST}"}
    return {
        "ModelPackageGroupName": group,
        "ModelPackageDescription": entry.source,
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "ModelApprovalStatus": "PendingManualApproval",
        "CustomerMetadataProperties": {key: _plain(value) for key, value in entry.tags.items()},
        "ModelMetrics": {"ModelQuality": {"Statistics": quality}},
    }


def _plain(text: str) -> str:
    """The text in the characters that SageMaker takes."""
    return re.sub(r"[^\w .:/=+@-]", "-", text)[:LONGEST_METADATA]
