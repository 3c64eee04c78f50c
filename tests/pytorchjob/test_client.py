"""The Kubernetes shell against an API server in a thread: what it forgives, what it says, and that no credential is ever said."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.errors import ClusterError, ClusterForbidden
from steps.pytorchjob import client as module
from steps.pytorchjob.client import Kube
from steps.pytorchjob.informer import FIRST_WAIT_S, Informer
from tests.pytorchjob.test_informer import eventually

DEFAULT = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
"""The client reads KUBECONFIG once, when it is imported."""
TOKEN, RENEWED = "old-secret-token", "new-secret-token"
Answer = tuple[int, dict[str, Any], dict[str, str]]
JOB = {"metadata": {"name": "j", "uid": "u"}}
LIST = {"metadata": {"resourceVersion": "7"}, "items": [JOB]}


def answer(status: int, body: dict[str, Any] | None = None, **headers: str) -> Answer:
    shown = body if body is not None else {"kind": "Status", "message": f"message of {status}"}
    return status, shown, {key.replace("_", "-"): value for key, value in headers.items()}


@dataclass
class Api:
    """Answers in the order of `answers`, the last one for ever; remembers what it was asked."""

    server: ThreadingHTTPServer = field(init=False)
    answers: list[Answer] = field(default_factory=lambda: [answer(200, JOB)])
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    is_half_open: bool = False
    """A watch gets its headers and then nothing more."""

    def __post_init__(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked.append(f"{self.command} {self.path}")
                api.tokens.append(self.headers.get("Authorization", ""))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if api.is_half_open and "watch=true" in self.path:
                    self.hang()
                    return
                status, body, headers = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
                data = body["raw"].encode() if "raw" in body else json.dumps(body).encode()
                self.send_response(status)
                for key, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def hang(self) -> None:
                self.send_response(200)
                self.end_headers()
                while api.is_half_open:
                    time.sleep(0.05)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@dataclass
class Waits:
    """A clock that only sleep moves."""

    now_s: float = 0.0
    slept: list[float] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.before()
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.server.shutdown()


def configuration(folder: Path, url: str, user: dict[str, Any]) -> Path:
    path = folder / "kubeconfig"
    raw = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def kube(api: Api, waits: Waits, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kube:
    monkeypatch.setattr(DEFAULT, str(configuration(tmp_path, api.url, {"token": TOKEN})))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return Kube("team", notice=said.append, clock=waits, sleep=waits.sleep, context="here")


def test_a_job_is_read_and_missing_ones_are_none(kube: Kube, api: Api) -> None:
    assert kube.job("j") == JOB
    api.answers = [answer(404)]
    assert kube.job("j") is None
    assert kube.pod("p") is None
    kube.delete("j")
    assert api.asked[0] == "GET /apis/kubeflow.org/v1/namespaces/team/pytorchjobs/j"
    assert api.asked[-1].startswith("DELETE /apis/kubeflow.org/v1/namespaces/team/pytorchjobs/j")


def test_creating_what_exists_is_told_apart(kube: Kube, api: Api) -> None:
    assert kube.create(JOB) == JOB
    api.answers = [answer(409)]
    assert kube.create(JOB) is None


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(kube: Kube, api: Api, waits: Waits, said: list[str], status: int) -> None:
    api.answers = [answer(status), answer(status), answer(200, JOB)]
    assert kube.job("j") == JOB
    assert len(waits.slept) == 2
    assert waits.slept[1] > 0.9  # it grows
    assert len(said) == 1
    assert "trying again" in said[0]
    assert kube.calls == 3


def test_the_server_says_how_long_to_wait(kube: Kube, api: Api, waits: Waits) -> None:
    api.answers = [
        answer(429, Retry_After="7"),
        answer(429, Retry_After="9999"),
        answer(503, Retry_After="soon"),
        answer(200, JOB),
    ]
    assert kube.job("j") == JOB
    assert waits.slept[:2] == [7.0, 60.0]


def test_a_namespace_or_a_resource_that_is_not_there_says_what_to_look_at(kube: Kube, api: Api) -> None:
    api.answers = [answer(404, {"message": "the server could not find the requested resource"})]
    with pytest.raises(
        ClusterError, match=r"could not find .*is cluster.namespace right, and the Training Operator installed\?"
    ):
        kube.create(JOB)


def test_patience_ends(kube: Kube, api: Api, waits: Waits) -> None:
    api.answers = [answer(503)]
    with pytest.raises(
        ClusterError, match=r"reading PyTorchJob j in namespace team: the API answered 503: message of 503"
    ):
        kube.job("j")
    assert 1800 < waits.now_s < 1900


def test_a_webhook_that_is_away_passes(kube: Kube, api: Api) -> None:
    words = 'failed calling webhook "mpytorchjob.kb.io": no endpoints available for service "kueue-webhook-service"'
    api.answers = [answer(500, {"message": words}), answer(201, JOB)]
    assert kube.create(JOB) == JOB


def test_connections_that_are_refused_and_come_back(kube: Kube, api: Api, waits: Waits, said: list[str]) -> None:
    port = api.server.server_address[1]
    api.server.shutdown()
    api.server.server_close()

    def come_back() -> None:
        if len(waits.slept) == 3:
            handler = api.server.RequestHandlerClass
            api.server = ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
            threading.Thread(target=api.server.serve_forever, args=(0.02,), daemon=True).start()

    waits.before = come_back
    assert kube.job("j") == JOB
    assert "cannot be reached" in said[0]


def test_a_credential_that_ran_out_is_renewed(
    api: Api, waits: Waits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `aws eks get-token` does: a program prints the token, and prints another one later."""
    program = tmp_path / "token.py"
    program.write_text(
        "import json, pathlib\n"
        "seen = pathlib.Path(__file__).with_suffix('.seen')\n"
        f"token = {RENEWED!r} if seen.exists() else {TOKEN!r}\n"
        "seen.touch()\n"
        "told = {'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential', 'status': {'token': token}}\n"
        "print(json.dumps(told))\n"
    )
    run = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(program)],
        "interactiveMode": "Never",
    }
    monkeypatch.setattr(DEFAULT, str(configuration(tmp_path, api.url, {"exec": run})))
    said: list[str] = []
    kube = Kube("team", context="here", notice=said.append, clock=waits, sleep=waits.sleep)
    api.answers = [answer(401), answer(200, JOB)]
    assert kube.job("j") == JOB
    assert api.tokens == [f"Bearer {TOKEN}", f"Bearer {RENEWED}"]
    assert not any(TOKEN in line or RENEWED in line for line in said)


def test_a_credential_that_stays_refused_is_told_soon(kube: Kube, api: Api, waits: Waits) -> None:
    api.answers = [answer(401, {"message": "Unauthorized"})]
    with pytest.raises(
        ClusterError, match=r"the credential was refused \(Unauthorized\); log in again, then `.*hyperpod-lora resume`"
    ) as caught:
        kube.job("j")
    assert 300 <= waits.now_s < 400
    assert TOKEN not in repr(caught.value)


NOBODY = 'pytorchjobs.kubeflow.org "j" is forbidden: User "system:anonymous" cannot get resource "pytorchjobs"'


def test_while_no_token_can_be_fetched_it_is_waited(kube: Kube, api: Api, waits: Waits, said: list[str]) -> None:
    """An exec plugin that fails for 75 s: the client goes on without a login, and the API answers 403 to nobody."""

    def come_back() -> None:
        if waits.now_s > 75:
            api.answers = [answer(200, JOB)]

    waits.before = come_back
    api.answers = [answer(403, {"message": NOBODY})]
    assert kube.job("j") == JOB
    assert "the API saw no login" in said[0]
    assert "rbac.yaml" not in said[0]


def test_a_login_that_is_missing_for_long_is_told(kube: Kube, api: Api, waits: Waits) -> None:
    api.answers = [answer(403, {"message": NOBODY})]
    with pytest.raises(ClusterError, match=r"saw no login .*Log in again, then `.*hyperpod-lora resume`") as caught:
        kube.job("j")
    assert not isinstance(caught.value, ClusterForbidden)
    assert 300 <= waits.now_s < 400


def test_after_a_long_outage_the_first_refused_credential_is_renewed(kube: Kube, api: Api, waits: Waits) -> None:
    def come_back() -> None:
        if waits.now_s > 600:
            api.answers = [answer(401), answer(200, JOB)]
            waits.before = lambda: None

    waits.before = come_back
    api.answers = [answer(503)]
    assert kube.job("j") == JOB
    assert waits.now_s > 600


def test_a_login_that_cannot_be_made_anew_just_now_is_no_end(
    kube: Kube, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(DEFAULT, str(tmp_path / "being-written"))
    api.answers = [answer(401), answer(200, JOB)]
    assert kube.job("j") == JOB


def test_what_is_forbidden_is_said_at_once_with_the_place_to_look(kube: Kube, api: Api, waits: Waits) -> None:
    words = 'pytorchjobs.kubeflow.org is forbidden: User "x" cannot create resource "pytorchjobs" in API group "kubeflow.org"'
    api.answers = [answer(403, {"message": words})]
    with pytest.raises(ClusterForbidden, match=r"cannot create resource .*config/cluster/rbac.yaml has what is needed"):
        kube.create(JOB)
    assert waits.slept == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 418, 422, 429, 500, 503])
def test_no_message_holds_a_token(kube: Kube, api: Api, said: list[str], status: int) -> None:
    api.answers = [answer(status)]
    told = list(said)
    for call in (kube.job, kube.delete, lambda name: kube.create({"metadata": {"name": name}}), kube.pod):
        try:
            call("j")
        except ClusterError as error:
            cause = error.__cause__
            told += [str(error), repr(error)]
            assert cause is None or TOKEN not in str(cause)
    assert not any(TOKEN in line for line in told + said)
    assert api.tokens[0] == f"Bearer {TOKEN}"


def test_answers_that_are_no_json_are_told_by_their_status(kube: Kube, api: Api) -> None:
    api.answers = [answer(418, {"raw": "<html>a proxy</html>"})]
    with pytest.raises(ClusterError, match="the API answered 418: I'm a Teapot"):
        kube.job("j")
    api.answers = [answer(418, {"raw": "[1]"})]
    with pytest.raises(ClusterError, match="the API answered 418"):
        kube.job("j")


def test_lists_carry_their_version(kube: Kube, api: Api) -> None:
    api.answers = [answer(200, LIST)]
    listed = kube.list("pytorchjobs", field_selector="metadata.name=j")
    assert (listed.items, listed.version) == ((JOB,), "7")
    kube.list("pods", label_selector="a=b")
    assert api.asked == [
        "GET /apis/kubeflow.org/v1/namespaces/team/pytorchjobs?fieldSelector=metadata.name%3Dj",
        "GET /api/v1/namespaces/team/pods?labelSelector=a%3Db",
    ]


def lines(*events: dict[str, Any]) -> Answer:
    return answer(200, {"raw": "".join(json.dumps(event) + "\n" for event in events)})


def test_a_watch_tells_changes_and_that_it_lives(kube: Kube, api: Api) -> None:
    mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}}
    api.answers = [lines({"type": "ADDED", "object": JOB}, mark, {"type": "DELETED", "object": JOB})]
    seen = []
    for change, item in kube.watch("pytorchjobs", "7", field_selector="metadata.name=j"):
        seen.append((change, item))
        if change == "DELETED":
            break
    assert [change for change, _ in seen] == ["ADDED", "BOOKMARK", "DELETED"]
    assert "resourceVersion=7" in api.asked[0]
    assert "watch=true" in api.asked[0]


def test_a_watch_whose_version_is_forgotten_ends_in_words(kube: Kube, api: Api) -> None:
    api.answers = [lines({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})]
    with pytest.raises(ClusterError, match="too old resource version"):
        list(kube.watch("pods", "1"))


@pytest.mark.parametrize("raw", ['{"type": "ADDED", "obj', '{"nothing": 1}'], ids=["cut", "unheard of"])
def test_a_watch_that_breaks_off_says_so(kube: Kube, api: Api, raw: str) -> None:
    api.answers = [answer(200, {"raw": raw})]
    with pytest.raises(ClusterError, match="broke off in the middle"):
        list(kube.watch("pods", "1"))


def test_a_half_open_watch_hides_a_death_for_less_than_half_a_minute(
    kube: Kube, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands and nothing comes: neither a change nor an end."""
    seconds = module.WATCH_TIMEOUT_S[1] + module.LIST_TIMEOUT_S[1] + FIRST_WAIT_S
    assert module.WATCH_TIMEOUT_S[1] > module.WATCH_S
    assert seconds < 30
    monkeypatch.setattr(module, "WATCH_TIMEOUT_S", (1, 0.2))
    api.answers = [answer(200, LIST)]
    api.is_half_open = True
    informer = Informer(kube, "j")
    informer.start()
    try:
        died = {**JOB, "status": "died"}
        api.answers = [answer(200, {**LIST, "items": [died]})]
        eventually(lambda: informer.job == died)
    finally:
        informer.stop()
        api.is_half_open = False


def test_a_watch_with_an_old_credential_has_a_new_one_next_time(kube: Kube, api: Api) -> None:
    api.answers = [answer(401)]
    before = kube._connection.api
    with pytest.raises(ClusterError, match="credential was refused"):
        list(kube.watch("pods", "1"))
    assert kube._connection.api is not before


def test_a_watch_that_is_not_allowed_says_so(kube: Kube, api: Api) -> None:
    api.answers = [answer(403)]
    with pytest.raises(ClusterForbidden):
        list(kube.watch("pods", "1"))


def test_a_log_is_text_and_a_missing_one_is_empty(kube: Kube, api: Api) -> None:
    api.answers = [answer(200, {"raw": "a\nb\n"})]
    assert kube.log("p", lines=5) == "a\nb\n"
    assert list(kube.follow_log("p", lines=5)) == ["a", "b"]
    for status in (400, 404):
        api.answers = [answer(status)]
        assert kube.log("p", lines=5) == ""
    with pytest.raises(ClusterError):
        list(kube.follow_log("p", lines=5))


def test_a_log_on_a_dead_node_is_not_waited_for(kube: Kube, api: Api, waits: Waits) -> None:
    """The API answers 500 in the kubelet's place, for as long as the node is away."""
    api.answers = [answer(500, {"message": "dial tcp 10.0.0.1:10250: connect: no route to host"})]
    with pytest.raises(ClusterError, match="no route to host"):
        kube.log("p", lines=5)
    assert waits.slept == []


def test_what_only_adds_words_is_never_in_the_way(kube: Kube, api: Api, waits: Waits) -> None:
    api.answers = [answer(403)]
    assert kube.events("j") == ()
    assert kube.is_node_ready("n") is None
    api.answers = [answer(503)]
    assert kube.events("j") == ()
    assert kube.is_node_ready("n") is None
    assert waits.slept == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (answer(200, {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}), True),
        (answer(200, {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}), False),
        (answer(200, {}), False),
        (answer(404), False),
    ],
    ids=["ready", "does not answer", "brand new", "gone"],
)
def test_a_node_answers_or_not(kube: Kube, api: Api, found: Answer, expected: bool) -> None:
    api.answers = [found]
    assert kube.is_node_ready("n") is expected


def test_without_any_configuration_the_words_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEFAULT, str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(
        ClusterError, match=r"no usable Kubernetes configuration for the current context.*aws eks update-kubeconfig"
    ):
        Kube("team")


def test_a_context_that_does_not_exist_is_named(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEFAULT, str(configuration(tmp_path, api.url, {"token": TOKEN})))
    with pytest.raises(ClusterError, match=r"context 'there' \(cluster.context\)") as caught:
        Kube("team", context="there")
    assert TOKEN not in str(caught.value)
