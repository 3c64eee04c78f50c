"""A hub that takes commits: the routes that huggingface_hub 0.36 and 2 write through, with commits, blobs and tags in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ADDRESS = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(/(?P<rest>.*))?")


@dataclass
class Repository:
    """Commits by their id, each with all its files."""

    private: bool = True
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        made = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[made] = files
        return made


@dataclass
class Hub:
    """What it holds, what it was asked, and where it fails."""

    url: str = ""
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[tuple[bool, str]] = field(default_factory=set)
    """(whether it was asked of the hub itself, Authorization)."""
    fails: dict[str, int] = field(default_factory=dict)
    """A part of a route → the status that it answers."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        route = urlsplit(path).path
        self.asked.append(f"{method} {route}")
        for part, status in self.fails.items():
            if part in f"{method} {route}":
                return status, {"error": "as told"}
        if method == "PUT":
            self.blobs[route.rpartition("/")[2]] = body
            return 200, {}
        if route == "/api/whoami-v2":
            return 200, {"name": "me", "auth": {"type": "access_token", "accessToken": {"role": self.role}}}
        if route == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if route == "/api/repos/create":
            return self._create(json.loads(body))
        if route.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._blob(item) for item in json.loads(body)["objects"]]}
        found = ADDRESS.fullmatch(route)
        repository = self.repositories.get(found["id"]) if found else None
        if found is None or repository is None:
            return 404, {"error": "Repository not found"}
        return self._of_repository(found["id"], repository, found["rest"] or "", body)

    def _create(self, asked: Any) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, {**url, "error": "You already created this model repo"}
        is_private = asked.get("private") or asked.get("visibility") == "private"  # before huggingface_hub 2, and since
        self.repositories[name] = Repository(private=bool(is_private))
        self.repositories[name].commit({".gitattributes": b""})
        return 200, url

    def _blob(self, item: Any) -> dict[str, Any]:
        if item["oid"] in self.blobs:
            return dict(item)
        return {**item, "actions": {"upload": {"href": f"{self.url}/blobs/{item['oid']}"}}}

    def _of_repository(self, name: str, repository: Repository, rest: str, body: bytes) -> tuple[int, Any]:
        if rest.startswith("preupload/"):
            return 200, {"files": [self._mode(repository, item) for item in json.loads(body)["files"]]}
        if rest.startswith("commit/"):
            return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        if rest.startswith("tag/"):
            repository.tags[json.loads(body)["tag"]] = rest.removeprefix("tag/")
            return 200, {}
        if rest == "refs":
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in repository.tags.items()]
            return 200, {"branches": [], "converts": [], "tags": tags}
        files = [{"rfilename": file} for file in repository.files]
        told = {"id": name, "sha": repository.head, "siblings": files, "tags": [], "private": repository.private}
        return 200, told

    def _mode(self, repository: Repository, item: Any) -> dict[str, Any]:
        there, is_large = repository.files.get(item["path"]), item["path"].endswith(".safetensors")
        oid = None if there is None else hashlib.sha256(there).hexdigest() if is_large else git_oid(there)
        mode = "lfs" if is_large else "regular"
        return {"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, name: str, repository: Repository, lines: list[Any]) -> tuple[int, Any]:
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.head):
                return 412, {"error": "A commit has happened since"}
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made}


def git_oid(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextlib.contextmanager
def hub_serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add((self.command != "PUT", self.headers.get("Authorization", "")))
            status, told = hub.answer(self.command, self.path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for key, value in {**headers, **({"X-Error-Code": "RepoNotFound"} if status == 404 else {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
