"""Where commands look: the config, the kubeconfig, and the words of what is wrong with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from steps.cli.view.log_source import follow_file
from steps.errors import StorageError
from tests.cli.cli_harness import call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a cluster, with a kubeconfig beside it."""
    cluster = {"namespace": "ns", "image": "i", "mount_path": str(tmp_path)}
    storage = {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"launcher": {"kind": "pytorchjob"}, "cluster": cluster, "storage": storage}))
    return path


LOCATION = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
"""The library reads KUBECONFIG when it is imported."""


def test_without_a_kubeconfig_it_says_what_to_do(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOCATION, str(tmp_path / "none"))
    result = call("status", "--config", config)
    assert result.exit_code == 1
    assert "Cluster unavailable: no usable Kubernetes configuration for the current context" in result.output
    assert "aws eks update-kubeconfig" in result.output


class Refusing(BaseHTTPRequestHandler):
    """An API server that allows nothing."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "message": 'pytorchjobs is forbidden: User "me" cannot list'}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = tmp_path / "kubeconfig"
    raw = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(raw))
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("words", [["status"], ["logs", "17"], ["cancel", "17", "--yes"]], ids=lambda words: words[0])
def test_a_missing_permission_is_named_without_the_token(
    words: list[str], config: Path, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOCATION, str(kubeconfig))
    result = call(*words, HYPERPOD_LORA_CONFIG=str(config))
    assert result.exit_code == 1
    assert "Permission missing: listing pytorchjobs in namespace ns: pytorchjobs is forbidden" in result.output
    assert "config/cluster/rbac.yaml" in result.output
    assert "secret-token" not in result.output


def test_a_config_that_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("launcher: {knd: local}")
    assert (
        "launcher.knd: unknown setting (did you mean 'kind'"
        in call("status", "--config", tmp_path / "wrong.yaml").output
    )
    with pytest.raises(StorageError):
        follow_file(tmp_path, 0, is_running=lambda: False, lines=1, note=print).__next__()  # type: ignore[attr-defined]
