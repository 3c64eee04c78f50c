"""A hub that answers from a local folder, and the small model that these tests use."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from steps.settings.catalog import RandomModel

COMMIT = "a" * 40
SMALL = RandomModel(hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=32, max_positions=64)


class FakeHub:
    """Answers the hub's questions (model info, list of files, HEAD, GET of a file) from a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gated = False
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                if "/tree/" in self.path:
                    self._json(hub.tree())
                elif self.path.startswith("/api/models/"):
                    self._json(hub.info())
                else:
                    self._file(self.path.rsplit("/", 1)[1])

            do_HEAD = do_GET

            def _json(self, value: object) -> None:
                self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def _file(self, name: str) -> None:
                path = hub.folder / name
                if hub.gated:
                    self._send(403, b"gated", {"X-Error-Code": "GatedRepo"})
                elif not path.is_file():
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                else:
                    data = path.read_bytes()
                    etag = hashlib.sha256(data).hexdigest()
                    self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def info(self) -> dict[str, object]:
        """What the hub says of a model."""
        files = [{"rfilename": path.name, "size": path.stat().st_size} for path in sorted(self.folder.iterdir())]
        return {"id": "someone/small", "sha": COMMIT, "siblings": files, "tags": [], "private": False}

    def tree(self) -> list[dict[str, object]]:
        """The list of files that huggingface_hub asks for since 2.0."""
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT}
            for path in sorted(self.folder.iterdir())
        ]

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
