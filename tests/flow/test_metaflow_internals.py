"""Metaflow's internals that this project leans on: a canary for each, so that a new Metaflow fails here and nowhere else."""

from __future__ import annotations

import getpass
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from metaflow import Run, current
from metaflow._vendor import click
from metaflow.client.core import MetaflowObject

from steps.flow import metaflow_internals
from steps.flow.metaflow_internals import (
    code_version,
    lacks_cards,
    name_user,
    pathspec,
    run_command_line,
    set_current,
    sources_digest,
)
from steps.settings.places import project_root


def make_project(root: Path) -> Path:
    for name, text in {
        "steps/a.py": "1",
        "config/local.yaml": "a: 1",
        "flows/f.py": "2",
        "steps/notes.md": "n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


def test_what_is_set_is_there_as_current() -> None:
    set_current("lora_test", {"a": 1})
    assert current.lora_test == {"a": 1}


def test_a_pathspec_is_flow_and_run() -> None:
    set_current("unrelated", 1)
    assert pathspec() == f"{current.flow_name}/{current.run_id}"


def test_the_exit_code_of_no_retry_is_metaflow_s() -> None:
    assert metaflow_internals.EXIT_NO_RETRY == 202


def test_tagging_a_run_needs_what_the_client_still_has() -> None:
    assert "_namespace_check" in inspect.signature(MetaflowObject.__init__).parameters
    assert "tags_to_add" in inspect.signature(Run.replace_tags).parameters


def test_where_nobody_keeps_the_run_s_record_its_tags_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metaflow_internals, "pathspec", lambda: "LoraFlow/1795660289178064")
    monkeypatch.setenv("USERNAME", "tester")
    monkeypatch.chdir(tmp_path)
    metaflow_internals.tag_run(["model:tiny", "gate:passed"])
    assert "LoraFlow/1795660289178064: model:tiny, gate:passed" in capsys.readouterr().out


TAG = """
import os
from steps.flow.metaflow_internals import tag_run, pathspec
from metaflow import FlowSpec, step
class Tagged(FlowSpec):
    @step
    def start(self):
        tag_run(["model:tiny", "state:start"], instead_of=["state:"])
        self.where = pathspec()
        self.next(self.end)
    @step
    def end(self):
        tag_run(["model:tiny", "state:end"], instead_of=["state:"])
        if "FAILS" in os.environ:
            raise ValueError("on purpose")
if __name__ == "__main__":
    Tagged()
"""


@pytest.mark.slow
def test_a_run_is_tagged_from_its_start_and_a_resumed_one_keeps_a_person_s_tags(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    (tmp_path / "tagged.py").write_text(TAG)
    flow = [sys.executable, str(tmp_path / "tagged.py")]

    def run(*words: str, **more: str) -> str:
        done = subprocess.run(
            words, env={**clean_environment, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    look = "from metaflow import Flow; run = Flow('Tagged').latest_run; print(sorted(run.user_tags))"
    assert "on purpose" in run(*flow, "run", "--tag", "ours", FAILS="1")
    assert run(sys.executable, "-c", look).startswith("['model:tiny', 'ours', 'state:end']")
    run(*flow, "resume", "end")
    assert run(sys.executable, "-c", look).startswith("['model:tiny', 'ours', 'state:end']")


@pytest.mark.parametrize(
    ("workload", "metadata", "run_id", "expected"),
    [
        *(("1", "local@/home/lora", "1795", True), ("", "local@/home/lora", "1795", False)),
        *(("1", "service@http://m", "17", False), ("1", "local@/home/lora", "argo-loraflow-x", False)),
    ],
    ids=["a pod of a laptop's run", "a laptop", "with a service", "on Argo"],
)
def test_where_cards_cannot_be_drawn_is_known(
    monkeypatch: pytest.MonkeyPatch, workload: str, metadata: str, run_id: str, expected: bool
) -> None:
    """Metaflow's local provider registers a task of its own process only where the run's id is no number."""
    if workload:
        monkeypatch.setenv("METAFLOW_KUBERNETES_WORKLOAD", workload)
    monkeypatch.setattr("metaflow.get_metadata", lambda: metadata)
    monkeypatch.setattr(type(current), "run_id", run_id)
    assert lacks_cards() == expected


def test_the_user_is_named_where_metaflow_cannot_know(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METAFLOW_USER", "SUDO_USER", "USERNAME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    name_user()
    assert os.environ["USERNAME"] == "local"
    monkeypatch.setenv("USERNAME", "ada")
    name_user()
    assert os.environ["USERNAME"] == "ada"
    monkeypatch.delenv("USERNAME")
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    name_user()
    assert os.environ["USERNAME"] == "grace"


def test_an_unknown_option_is_answered_with_the_nearest_and_other_ends_pass(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        raise SystemExit(2)

    for words, said in ((["--lora-rnk"], "--lora-rnk: unknown (did you mean '--lora-rank'"), ([], "")):
        with pytest.raises(SystemExit) as end:
            run_command_line(lambda words=words: command(words))  # type: ignore[misc]
        assert end.value.code == 2
        told = capsys.readouterr().err
        assert said in told
        assert bool(said) == ("run --help" in told)


def test_the_digest_is_that_of_the_sources_alone(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    before = sources_digest(root)
    (root / "steps" / "notes.md").write_text("changed")
    (root / "README.md").write_text("changed")
    assert sources_digest(root) == before
    (root / "steps" / "a.py").rename(root / "steps" / "b.py")
    assert sources_digest(root) != before
    assert len(sources_digest(project_root())) == 64


def test_without_git_the_version_is_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_project(tmp_path)
    assert set(code_version(root)) == {"digest"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(code_version(root)) == {"digest"}


def test_with_git_the_commit_is_named_and_changes_are_told(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(root, *words)
    commit = code_version(root)["commit"]
    assert len(commit) == 40
    (root / "new.txt").write_text("untracked files do not count")
    assert code_version(root)["commit"] == commit
    (root / "steps" / "a.py").write_text("3")
    assert code_version(root)["commit"] == commit + "+changes"


ARCHIVING = """
import os
from pathlib import Path
from metaflow import FlowSpec, package_sources, step
from metaflow.system_context import system_context
from steps.flow.metaflow_internals import archive
from steps.protocol.rundir import RunDir
ROOT = os.environ["PROJECT"]

@package_sources([ROOT + "/steps", ROOT + "/config"], suffixes=[".py", ".yaml", ".json", ".html", ".css"])
class Archiving(FlowSpec):
    @step
    def start(self):
        run = RunDir(Path(os.environ["SHARED"]))
        first = archive(run)
        first[0].write_bytes(b"damaged")
        again = archive(run)
        (_, key), = system_context.flow_datastore.save_data([b"what the pod runs"])
        os.environ.update(METAFLOW_CODE_SHA=key, METAFLOW_KUBERNETES_WORKLOAD="1")
        self.made = [str(path) + " " + digest for path, digest in (first, again, archive(run))]
        print("MADE", *self.made)
        self.next(self.end)
    @step
    def end(self):
        pass
if __name__ == "__main__":
    Archiving()
"""
INSIDE = """
import steps.job.agent.pod_main, steps.train.worker, steps.settings.catalog, steps.settings.places, sys
print(steps.__file__, steps.settings.places.config_root(), steps.settings.catalog.find_model("tiny").name)
"""


@pytest.mark.slow
def test_workers_run_the_code_of_the_run_from_the_shared_file_system_alone(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "archiving.py").write_text(ARCHIVING)
    shared, unpacked = tmp_path / "shared", tmp_path / "unpacked"
    environment = {**clean_environment, "PROJECT": str(project_root()), "SHARED": str(shared)}
    command = [sys.executable, str(tmp_path / "flow" / "archiving.py"), "run"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    path, digest, *others = done.stdout.split("MADE ")[1].split()[:6]

    assert others[:2] == [path, digest], "the same code is the same file, and a damaged one is written anew"
    assert Path(path) == shared / "code" / f"{digest[:16]}.tgz"
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    assert Path(others[2]).read_bytes() == b"what the pod runs", "a pod passes on what it was made from"
    with tarfile.open(path) as packed:
        packed.extractall(unpacked, filter="data")
    elsewhere = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(unpacked)}
    told = subprocess.run([sys.executable, "-c", INSIDE], env=elsewhere, cwd="/", capture_output=True, text=True)
    assert told.stdout.split() == [f"{unpacked}/steps/__init__.py", f"{unpacked}/config", "tiny"], told.stderr

    bootstrap = (project_root() / "steps" / "job" / "agent" / "bootstrap.py").read_text()
    words = [sys.executable, "-c", bootstrap, path, digest, "steps.job.agent.pod_main", "--help"]
    helped = subprocess.run(words, env=elsewhere | {"PYTHONPATH": ""}, cwd="/", capture_output=True, text=True)
    assert "Run one node of a job" in helped.stdout, helped.stderr


def test_the_digest_and_the_commit_are_the_same_in_an_unpacked_package(tmp_path: Path) -> None:
    checkout, package = make_project(tmp_path / "checkout"), make_project(tmp_path / "package")
    (package / "flows" / "f.py").rename(package / "f.py")
    (package / "flows").rmdir()
    told = {"commit_sha": "c0ffee", "has_uncommitted_changes": True}
    (package / ".mf_meta").mkdir()
    (package / ".mf_meta" / "INFO").write_text(json.dumps(told))
    assert code_version(package) == {"digest": sources_digest(checkout), "commit": "c0ffee+changes"}
    (package / ".mf_meta" / "INFO").write_text(json.dumps({**told, "has_uncommitted_changes": False}))
    assert code_version(package)["commit"] == "c0ffee"
    (package / ".mf_meta" / "INFO").write_text("{}")
    assert set(code_version(package)) == {"digest"}
