"""A registry on each node's own loopback, which refuses in a chosen way until it is mended. For `test_pulls`.

    python registry.py FOLDER PORT

FOLDER/oci is an OCI image layout; the first part of a repository's name chooses the fault, and FOLDER/mended ends all faults but
that of `never`. Run inside a node's network namespace: containerd speaks plain HTTP to `localhost` only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REFUSALS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unauthorized": (("manifests",), 401, ""),
    "forbidden": (("manifests",), 403, ""),
    "credentials": (("manifests",), 401, 'Basic realm="test"'),
    "layer": (("blobs",), 403, ""),
    "digest": (("manifests", "blobs"), 404, ""),
    "never": (("manifests",), 403, ""),
}
"""By the repository's name: what is refused, with which status, and the challenge."""


def lay_out(image: str, folder: Path) -> str:
    """Put an image of this machine into FOLDER/oci, with a layer that no node has; the digest of its manifest."""
    layout = folder / "oci"
    command = ["buildah", "push", "-q", "--disable-compression", image, f"oci:{layout}:plain"]
    subprocess.run(command, check=True, capture_output=True)
    index = json.loads((layout / "index.json").read_text())
    manifest = _read(layout, index["manifests"][0]["digest"])
    config = _read(layout, manifest["config"]["digest"])
    plain = _layer(os.urandom(16).hex().encode())
    packed = gzip.compress(plain)
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(plain).hexdigest())
    config.setdefault("history", []).append({"created_by": "test"})
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    manifest["layers"].append({"mediaType": kind, **_add(layout, packed)})
    manifest["config"] |= _add(layout, json.dumps(config).encode())
    manifest["mediaType"] = MANIFEST
    digest = str(_add(layout, json.dumps(manifest).encode())["digest"])
    (folder / "newest").write_text(digest)
    return digest


def _layer(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        told = tarfile.TarInfo("etc/of-the-test")
        told.size = len(content)
        packed.addfile(told, io.BytesIO(content))
    return file.getvalue()


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _read(layout: Path, digest: str) -> dict[str, Any]:
    return dict(json.loads(_path(layout, digest).read_text()))


def _add(layout: Path, content: bytes) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    _path(layout, digest).write_bytes(content)
    return {"digest": digest, "size": len(content)}


class Answer(BaseHTTPRequestHandler):
    """The few reads of the distribution API that a pull makes."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_HEAD(self) -> None:
        parts = self.path.strip("/").split("/")
        if len(parts) < 4:
            self._send(200, b"{}", "application/json")
            return
        fault, kind, reference = parts[1], parts[-2], parts[-1]
        refused, status, challenge = REFUSALS.get(fault, ((), 0, ""))
        is_mended = (self.folder / "mended").exists() and fault != "never"
        if kind in refused and not is_mended:
            self._send(status, b"", "text/plain", {"WWW-Authenticate": challenge} if challenge else {})
            return
        digest = reference if ":" in reference else (self.folder / "newest").read_text()
        path = _path(self.folder / "oci", digest)
        if not path.is_file():
            self._send(404, b"", "text/plain")
            return
        content = path.read_bytes()
        told = MANIFEST if kind == "manifests" else "application/octet-stream"
        self._send(200, content, told, {"Docker-Content-Digest": digest})

    do_GET = do_HEAD

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


if __name__ == "__main__":
    Answer.folder = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Answer).serve_forever()
