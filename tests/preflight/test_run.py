"""How the preflight asks: the real client against a small HTTP server that answers, hangs, refuses or is not there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from steps.errors import ClusterError
from steps.preflight import survey
from steps.preflight.finding import Finding
from steps.preflight.question import Answer, Question
from steps.preflight.run import findings, require
from tests.job.job_fakes import FakeClock
from tests.preflight import preflight_answers as good

Respond = Callable[[str, str, Any], tuple[int, Any]]


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, as it should when its time is over."""


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], ApiClient]]:
    """Starts a server for a function of (method, path, body); returns a client of it."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Respond) -> ApiClient:
        server = QuietServer(("127.0.0.1", 0), handler(respond))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return client(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def client(port: int) -> ApiClient:
    return ApiClient(Configuration(host=f"http://127.0.0.1:{port}"))


def handler(respond: Respond) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: Any) -> None:
            status, found = respond(self.command, self.path, body)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: Any) -> None:
            pass

    return Handler


def perfect(aim: survey.Target) -> Respond:
    """The API server of the cluster in perfect order."""
    asked = {**survey.questions(aim, survey.sample(aim)), "version": survey.VERSION}
    answers = good.answers(aim)
    known = {(question.path, json.dumps(question.body)): answers[key] for key, question in asked.items()}

    def respond(method: str, path: str, body: Any) -> tuple[int, Any]:
        answer = known[path.partition("?")[0], json.dumps(body)]
        return answer.status, dict(answer.body)

    return respond


def plain() -> survey.Target:
    """With a local datastore, so that nothing but the server is asked."""
    return survey.Target(good.settings(), is_inside=True)


def look(api: ApiClient, *, limit_s: float = 60.0) -> list[Finding]:
    """With more time than in earnest: the machine may be busy with other tests."""
    found = findings(plain(), connect=lambda context: api, limit_s=limit_s)
    return [item for item in found if item.check not in ("mount", "datastore")]


def test_a_perfect_cluster_is_found_perfect_through_the_real_client(serve: Callable[[Respond], ApiClient]) -> None:
    found = look(serve(perfect(plain())))
    assert {item.severity for item in found} == {"ok"}
    assert {item.check for item in found} >= {"api", "permissions", "operator", "nodes", "claim", "image", "job", "pod"}


def test_a_server_that_is_not_there_is_one_finding_at_once() -> None:
    begun_s = time.monotonic()
    (found,) = look(client(1))
    assert (found.check, found.severity) == ("api", "error")
    assert "does not answer: NewConnectionError at http://127.0.0.1:1" in found.message
    assert time.monotonic() - begun_s < 30


def test_a_refused_credential_is_one_finding_without_the_credential(serve: Callable[[Respond], ApiClient]) -> None:
    api = serve(lambda method, path, body: (401, {"message": "Unauthorized"}))
    api.configuration.api_key = {"BearerToken": "Bearer verysecret"}
    (found,) = look(api)
    assert (found.check, found.severity) == ("login", "error")
    assert "credential was refused: Unauthorized" in found.message
    assert "verysecret" not in repr(found)


def test_a_server_that_hangs_costs_no_more_than_the_time_that_was_given(
    serve: Callable[[Respond], ApiClient],
) -> None:
    over = threading.Event()

    def respond(method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/version"):
            return 200, {"gitVersion": "v1"}
        over.wait(60)
        return 200, {}

    begun_s = time.monotonic()
    found = look(serve(respond), limit_s=3.0)
    took_s = time.monotonic() - begun_s
    over.set()
    assert took_s < 20
    assert any(item.check == "nodes" and "is not checked" in item.message for item in found)
    assert any(item.check == "permissions" and "could not be asked" in item.message for item in found)


@pytest.mark.parametrize("data", [b"<html>bad gateway", b"", b"[1]"], ids=["a page", "nothing", "a list"])
def test_an_answer_that_is_no_object_is_no_crash(serve: Callable[[Respond], ApiClient], data: bytes) -> None:
    def respond(method: str, path: str, body: Any) -> tuple[int, Any]:
        return (200, {"gitVersion": "v1"}) if path == "/version" else (502, data)

    found = look(serve(respond))
    assert any(item.check == "nodes" and item.severity == "warning" for item in found)


def test_a_configuration_that_cannot_be_loaded_is_a_finding() -> None:
    def connect(context: str) -> ApiClient:
        raise ClusterError("no usable Kubernetes configuration for the current context")

    found = findings(plain(), connect=connect)
    assert ("login", "error") in {(item.check, item.severity) for item in found}


def test_mistakes_outside_of_the_cluster_are_told_even_when_it_is_away() -> None:
    laptop = survey.Target(good.settings())
    checks = {item.check: item.severity for item in findings(laptop, connect=lambda context: client(1))}
    assert checks == {"api": "error", "datastore": "error"}


def test_what_is_posted_is_a_dry_run(serve: Callable[[Respond], ApiClient]) -> None:
    """Of all requests, only reviews and dry runs are POSTs."""
    posted: list[str] = []
    respond = perfect(plain())

    def noted(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method != "GET":
            posted.append(path)
        return respond(method, path, body)

    look(serve(noted))
    changing = [path for path in posted if "reviews" not in path]
    assert len(changing) == 2
    assert all("dryRun=All" in path for path in changing)


ODD = [
    Finding("a", "error", "wrong", "mend"),
    Finding("b", "warning", "odd", "look"),
    Finding("n", "note", "unseen", "look"),
    Finding("c", "error", "bad", "x"),
]
AWAY = [Finding("api", "error", "the Kubernetes API does not answer", "look at the network")]


def test_require_tells_warnings_and_raises_all_errors_at_once() -> None:
    told: list[str] = []
    with pytest.raises(ClusterError) as caught:
        require(plain(), notice=told.append, look=lambda target: ODD)
    assert told == ["preflight: b: odd → look"]
    assert [words in str(caught.value) for words in ("wrong", "→ mend", "bad", "2 errors")] == [True] * 4
    assert "odd" not in str(caught.value)


def test_require_looks_again_while_the_api_is_away_for_a_moment() -> None:
    told, clock, answers = list[str](), FakeClock(), iter([AWAY, AWAY, ODD[1:2]])
    require(plain(), notice=told.append, look=lambda target: next(answers), clock=clock, sleep=clock.sleep)
    assert [words.split("; ")[-1] for words in told[:2]] == ["looking again in 5 s"] * 2
    assert told[2] == "preflight: b: odd → look"


def test_require_gives_up_when_the_api_stays_away() -> None:
    clock = FakeClock()
    with pytest.raises(ClusterError, match="does not answer"):
        require(plain(), notice=lambda words: None, look=lambda target: AWAY, clock=clock, sleep=clock.sleep)
    assert clock.now_s == 1000 + 60


def test_a_wrong_login_is_not_waited_for() -> None:
    wrong = [Finding("login", "error", "the credential was refused", "log in")]
    clock = FakeClock()
    with pytest.raises(ClusterError, match="refused"):
        require(plain(), notice=lambda words: None, look=lambda target: wrong, clock=clock, sleep=clock.sleep)
    assert clock.now_s == 1000


def test_a_question_is_a_value_that_can_be_read() -> None:
    assert Question("/x").verb == "get"
    assert Answer(200, {"items": None}).items == []
