"""A publication on the hub, through the hub's own library: one commit, one tag, never to a public place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import StorageError
from steps.publish import hub as publishing
from steps.publish.check import problems
from steps.publish.contents import gather
from steps.settings.publish import Publish
from tests.publish.publish_harness import make_model, publish_to
from tests.publish.standin_hub import Hub, hub_serving

NAME = "team/orders"
TOKEN = "hf_plantedHubToken0123456789"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, as everybody's hub; the library has read its environment already."""
    from huggingface_hub import constants

    with hub_serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes large files by LFS
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.mark.parametrize(("what", "places"), [("merged", {""}), ("adapter", {""}), ("both", {"", "adapter/"})])
def test_one_private_commit_holds_all_files_and_a_tag_names_it(
    hub: Hub, tmp_path: Path, what: str, places: set[str]
) -> None:
    made = make_model(tmp_path)
    published = publish_to(tmp_path, made, hub=NAME, what=what)
    repository = hub.repositories[NAME]
    contents = gather(Publish(what=what), made.merged, made.adapter)  # type: ignore[arg-type]
    files = {name: path.read_bytes() for name, path in publishing.files_of(contents).items()}
    assert repository.files == {".gitattributes": b"", **files}
    assert {name.rpartition("/")[0] and "adapter/" for name in files} == places
    assert (repository.private, len(repository.commits)) == (True, 2)
    assert repository.tags == {published.digest[:12]: repository.head}
    assert published.addresses == {"hub": f"{NAME}@{published.digest[:12]}"}
    assert not [name for name in files if name.endswith(("merge.json", "training.json"))]
    asked_without = {(True, "")}  # huggingface_hub 2 asks the hub for a list of coding agents, once a process
    assert hub.tokens - asked_without == {(True, f"Bearer {TOKEN}"), (False, "")}


def test_telling_it_twice_makes_no_second_commit(hub: Hub, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    first = publish_to(tmp_path, made, hub=NAME)
    hub.asked.clear()
    assert publish_to(tmp_path, made, hub=NAME) == first
    assert len(hub.repositories[NAME].commits) == 2
    assert not [asked for asked in hub.asked if "commit/" in asked or asked.startswith("PUT")]


def test_another_model_replaces_the_files_and_the_former_ones_keep_their_tag(hub: Hub, tmp_path: Path) -> None:
    first = publish_to(tmp_path, make_model(tmp_path / "1"), hub=NAME, what="both")
    publish_to(tmp_path, make_model(tmp_path / "2", weight=b"others"), hub=NAME)
    repository = hub.repositories[NAME]
    assert not [name for name in repository.files if name.startswith("adapter/")]
    assert len(repository.tags) == 2
    assert "adapter/adapter_model.safetensors" in repository.commits[repository.tags[first.digest[:12]]]


@pytest.mark.parametrize(
    "broken", ["/validate-yaml", "/preupload/", "/objects/batch", "PUT /blobs", "/commit/", "/tag/"]
)
def test_whatever_breaks_the_branch_has_all_or_nothing_and_the_next_try_goes_on(
    hub: Hub, tmp_path: Path, broken: str
) -> None:
    made = make_model(tmp_path)
    hub.fails = {broken: 403}  # the library tries a 500 of a blob again, for half a minute
    with pytest.raises(StorageError, match="the hub: team/orders") as failed:
        publish_to(tmp_path, made, hub=NAME)
    assert TOKEN not in str(failed.value)
    repository = hub.repositories[NAME]
    assert len(repository.files) in (1, 7)
    assert not repository.tags
    uploaded, hub.fails = set(hub.blobs), {}
    hub.asked.clear()
    publish_to(tmp_path, made, hub=NAME)
    assert (len(repository.files), len(repository.commits), len(repository.tags)) == (7, 2, 1)
    again = {asked.rpartition("/")[2] for asked in hub.asked if asked.startswith("PUT")}
    assert not again & uploaded


def test_somebody_elses_commit_in_between_is_not_overwritten(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    made, ask = make_model(tmp_path), HfApi.list_repo_refs

    def meanwhile(api: HfApi, *words: Any, **given: Any) -> Any:
        hub.repositories[NAME].commit({"theirs": b""})
        return ask(api, *words, **given)

    monkeypatch.setattr(HfApi, "list_repo_refs", meanwhile)
    with pytest.raises(StorageError, match="somebody else wrote there"):
        publish_to(tmp_path, made, hub=NAME)
    assert hub.repositories[NAME].files == {"theirs": b""}


def test_nothing_goes_to_a_public_repository(hub: Hub, tmp_path: Path) -> None:
    publish_to(tmp_path, make_model(tmp_path), hub=NAME)
    hub.repositories[NAME].private = False
    hub.asked.clear()
    with pytest.raises(StorageError, match="is public"):
        publish_to(tmp_path, make_model(tmp_path, weight=b"others"), hub=NAME)
    assert not [asked for asked in hub.asked if "commit/" in asked or asked.startswith("PUT")]
    assert problems(Publish(hub=NAME)) == [("publish.hub", f"{NAME} is public: make it private, or name another")]


def test_what_is_known_before_a_training_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Publish(hub=NAME)
    assert problems(asked) == []
    hub.role = "read"
    assert "may only read" in problems(asked)[0][1]
    hub.fails = {"whoami": 401}
    assert "refused (401)" in problems(asked)[0][1]
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in problems(asked)[0][1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "set HF_TOKEN" in problems(asked)[0][1]


def test_a_hub_out_of_reach_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be used" in problems(Publish(hub=NAME))[0][1]


def test_a_gate_that_is_not_passed_brings_nothing(hub: Hub, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    with pytest.raises(Exception, match="gate is not passed"):
        publish_to(tmp_path, replace(made, report=replace(made.report, gate_passed=False)), hub=NAME)
    assert hub.asked == []
