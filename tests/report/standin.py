"""A server that takes everything, remembers it, and fails on demand."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from steps.job.job import Change
from steps.protocol.events import EventWriter
from steps.protocol.rundir import TrainDir
from steps.report.sink import Facts


@dataclass
class Server:
    """What it was asked, and what it answers."""

    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    hang: threading.Event | None = None
    """Set: answers wait for it."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Route → body, or a function of the request that gives it."""

    def bodies(self, route: str) -> list[Any]:
        return [body for path, body in self.asked if path.endswith(route)]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(json.loads(self.rfile.read(length) or b"null"))

        def do_GET(self) -> None:
            self._answer({key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

        def _answer(self, body: Any) -> None:
            if server.hang:
                server.hang.wait(30)
            route = urlsplit(self.path).path
            server.asked.append((route, body))
            server.headers.append(dict(self.headers))
            made = next((value for name, value in server.answers.items() if route.endswith(name)), {})
            told = made(body) if callable(made) else made
            status = server.status
            if isinstance(told, tuple):
                status, told = told
            data = json.dumps(told).encode()
            with contextlib.suppress(OSError):  # who asked may have gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if server.hang:
            server.hang.set()
        httpd.shutdown()
        httpd.server_close()


def facts_of(folder: Path, **values: Any) -> Facts:
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "model": "tiny",
        "dataset": "orders",
        "steps": 10,
        "values": {"training.seed": "42"},
        "data_digest": "d" * 64,
    }
    return Facts("LoraFlow/7/train-abc", folder, **{**told, **values})


def write_events(folder: Path, attempt: int, steps: range, *, loss: float = 1.0, time_s: float = 1000.0) -> None:
    """An attempt's events: started, a step a second, a save and a validation at the end."""
    now = [time_s]

    def clock() -> float:
        now[0] += 1
        return now[0]

    with open("/dev/null", "w") as quiet:
        writer = EventWriter(TrainDir(folder).events(attempt), attempt=attempt, stream=quiet, clock=clock)
        writer.emit("started", steps.start - 1, of=10)
        for step in steps:
            writer.emit("step", step, loss=loss / step, lr=1e-3, tokens_per_s=100.0, grad_norm=0.5)
        writer.emit("checkpoint", steps.stop - 1, seconds=0.1)
        writer.emit("validation", steps.stop - 1, loss=0.25)


def change(turn: Any, /, attempt: int = 1, time_s: float = 1000.0, **data: Any) -> Change:
    return Change(turn, time_s, attempt, data)
