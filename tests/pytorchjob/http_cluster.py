"""A small Kubernetes API in a thread, spoken to by the real client over real sockets: PyTorchJobs, their pods, and bad moods.

`made` is called with each new job and makes its pods; a test then changes them. Moods: "mute" accepts a connection and never
answers, "anonymous" sees no login, "denied" refuses it, "away" closes every connection without a word.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

NOBODY = (
    'pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "team"'
)
JOB_NAME = "training.kubeflow.org/job-name"


class HttpCluster:
    """The state of one namespace, and the server that tells it."""

    def __init__(self, made: Callable[[HttpCluster, dict[str, Any]], None]) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"pytorchjobs": {}, "pods": {}, "events": {}, "nodes": {}}
        self.changes: list[tuple[str, str, dict[str, Any]]] = []
        """(kind, what happened, object), in order."""
        self.mood = ""
        self.age = 0
        """Connections made before its last change are half-open: they stand, and nothing comes through them any more."""
        self.asked: list[str] = []
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, made))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, kind: str, item: dict[str, Any]) -> None:
        """Make or change an object."""
        with self.changed:
            name = item["metadata"]["name"]
            what = "MODIFIED" if name in self.objects[kind] else "ADDED"
            item = json.loads(json.dumps(item))
            item["metadata"] |= {"resourceVersion": str(len(self.changes) + 1)}
            self.objects[kind][name] = item
            self.changes.append((kind, what, item))
            self.changed.notify_all()

    def remove(self, kind: str, name: str) -> None:
        with self.changed:
            gone = self.objects[kind].pop(name, None)
            if gone:
                self.changes.append((kind, "DELETED", gone))
                self.changed.notify_all()

    def delete_job(self, name: str) -> None:
        """In the foreground: its pods go with it."""
        for pod in [pod for pod, item in self.objects["pods"].items() if item["metadata"]["labels"][JOB_NAME] == name]:
            self.remove("pods", pod)
        self.remove("pytorchjobs", name)

    def cut(self) -> None:
        """Something between client and server has forgotten every connection that stands; new ones work."""
        self.age += 1

    def close(self) -> None:
        self.mood = ""
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def running(made: Callable[[HttpCluster, dict[str, Any]], None]) -> Iterator[HttpCluster]:
    cluster = HttpCluster(made)
    try:
        yield cluster
    finally:
        cluster.close()


def _handler(cluster: HttpCluster, made: Callable[[HttpCluster, dict[str, Any]], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.age = cluster.age

        def hang_if_cut(self) -> None:
            until_s = time.monotonic() + 60.0
            while self.age < cluster.age and time.monotonic() < until_s:
                time.sleep(0.05)

        def handle_one(self) -> None:
            address = urlparse(self.path)
            cluster.asked.append(f"{self.command} {address.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.hang_if_cut()
            match cluster.mood:
                case "mute":
                    while cluster.mood == "mute":
                        time.sleep(0.02)
                    self.close_connection = True
                case "away":
                    self.close_connection = True
                case "anonymous":
                    self.answer(403, {"message": NOBODY})
                case "denied":
                    self.answer(401, {"message": "Unauthorized"})
                case _:
                    self.serve(address.path, parse_qs(address.query), body)

        do_GET = do_POST = do_DELETE = handle_one

        def serve(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
            words = path.strip("/").split("/")
            kind = next(word for word in reversed(words) if word in cluster.objects)
            name = words[-1] if words[-1] != kind else ""
            if self.command == "POST":
                self.create(json.loads(body))
            elif self.command == "DELETE":
                cluster.delete_job(name)
                self.answer(200, {})
            elif "watch" in query:
                self.watch(kind, query)
            elif name:
                found = cluster.objects[kind].get(name)
                self.answer(200 if found else 404, found or {"message": f"{name} not found"})
            else:
                with cluster.changed:
                    items = [item for item in cluster.objects[kind].values() if _is_asked_for(item, query)]
                    version = str(len(cluster.changes))
                self.answer(200, {"metadata": {"resourceVersion": version}, "items": items})

        def create(self, job: dict[str, Any]) -> None:
            name = job["metadata"]["name"]
            if name in cluster.objects["pytorchjobs"]:
                self.answer(409, {"message": f"{name} already exists"})
                return
            job = {**job, "metadata": {**job["metadata"], "uid": f"uid-{name}"}, "status": {}}
            cluster.put("pytorchjobs", job)
            made(cluster, job)
            self.answer(201, cluster.objects["pytorchjobs"][name])

        def watch(self, kind: str, query: dict[str, list[str]]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            at, until_s = int(query["resourceVersion"][0]), time.monotonic() + int(query["timeoutSeconds"][0])
            while time.monotonic() < until_s:
                with cluster.changed:
                    cluster.changed.wait(0.1)
                    new, at = cluster.changes[at:], len(cluster.changes)
                self.hang_if_cut()
                while cluster.mood == "mute":  # the connection stands, and nothing comes
                    time.sleep(0.02)
                for changed, what, item in new:
                    if changed == kind and _is_asked_for(item, query):
                        self.write_chunk(json.dumps({"type": what, "object": item}).encode() + b"\n")
            self.write_chunk(b"")

        def write_chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client has given up waiting
                super().handle()

    return Handler


def _is_asked_for(item: dict[str, Any], query: dict[str, list[str]]) -> bool:
    for selector in query.get("labelSelector", []):
        key, _, value = selector.partition("=")
        if item["metadata"].get("labels", {}).get(key) != value:
            return False
    for selector in query.get("fieldSelector", []):
        key, _, value = selector.partition("=")
        if key == "metadata.name" and item["metadata"]["name"] != value:
            return False
    return True
