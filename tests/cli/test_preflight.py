"""The `preflight` command: what it prints, its exit code, and mistakes in the config. The cluster is never there."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from metaflow import metaflow_config

from steps.cli.main import Commands
from steps.cli.preflight import cluster_settings, preflight
from steps.errors import ConfigError
from steps.flow.metaflow_internals import metaflow_datastore

CLUSTER = {"namespace": "team", "image": "r.io/lora:1", "steps": {"enabled": False}}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that nobody answers for."""
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "away",
                "clusters": [{"name": "away", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "away", "context": {"cluster": "away", "user": "me"}}],
            }
        )
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


def write(tmp_path: Path, **changed: object) -> Path:
    raw = {
        "storage": {"root": f"{tmp_path}/runs", "cache": f"{tmp_path}/cache"},
        "launcher": {"kind": "pytorchjob"},
        "cluster": {**CLUSTER, "mount_path": str(tmp_path)},
        **changed,
    }
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def call(*arguments: str) -> Result:
    group = Commands("hyperpod-lora", commands=[preflight])
    assert isinstance(group, click.Group)
    return CliRunner().invoke(group, ["preflight", *arguments])


@pytest.mark.usefixtures("kubeconfig")
def test_an_error_is_told_in_the_table_and_by_the_exit_code(tmp_path: Path) -> None:
    done = call("--config", str(write(tmp_path)))
    assert done.exit_code == 1
    assert done.output.startswith("error    api")
    assert f"{tmp_path} can be written from here" in done.output
    assert "1 error, 0 warnings, 2 ok; " in done.output


@pytest.mark.usefixtures("kubeconfig")
def test_the_findings_as_json_are_the_same(tmp_path: Path) -> None:
    done = call("--config", str(write(tmp_path)), "--json")
    found = json.loads(done.output)
    assert done.exit_code == 1
    assert [(item["check"], item["severity"]) for item in found] == [
        ("api", "error"),
        ("mount", "ok"),
        ("datastore", "ok"),
    ]
    assert all(item["fix"] for item in found if item["severity"] == "error")


@pytest.mark.usefixtures("kubeconfig")
def test_a_context_that_is_not_there_is_told(tmp_path: Path) -> None:
    cluster = {**CLUSTER, "mount_path": str(tmp_path), "context": "other"}
    done = call("--config", str(write(tmp_path, cluster=cluster)))
    assert done.exit_code == 1
    assert "context 'other' (cluster.context)" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("launcher: {kind: local}", "no cluster is used, so there is nothing to check"),
        ("launcher: {kind: pytorchjob}", "cluster.namespace: must be given"),
        ("a: [", "cannot be read as YAML"),
        ("cluster: {nodes: many}", "cluster.nodes"),
    ],
    ids=["local", "no namespace", "no YAML", "no number"],
)
def test_a_config_that_describes_no_cluster_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        cluster_settings(path)
    assert call("--config", str(path)).exit_code == 1


def test_the_datastore_is_the_one_that_metaflow_is_configured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaflow_config, "DATASTORE_SYSROOT_S3", "s3://bucket/prefix")
    monkeypatch.setattr(metaflow_config, "S3_ENDPOINT_URL", "http://10.0.0.1:5555")
    found = metaflow_datastore("s3")
    assert (found.kind, found.bucket, found.endpoint) == ("s3", "bucket", "http://10.0.0.1:5555")
    assert metaflow_datastore("local").bucket == ""
