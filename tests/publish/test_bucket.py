"""A publication in S3: whole or not to be seen, the same however often and by whomever it is told, and only past the gate."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import CheckpointError, LoraFlowError, ModelError, StorageError
from steps.protocol.records import Published
from steps.publish import bucket as publishing
from tests.publish.publish_harness import make_model, publish_to

S3 = "s3://team/models"


def keys(client: Any) -> dict[str, str]:
    """Every object's key and tag."""
    return {item["Key"]: item["ETag"] for item in client.list_objects_v2(Bucket="team").get("Contents", ())}


def read(client: Any, key: str) -> bytes:
    return bytes(client.get_object(Bucket="team", Key=key)["Body"].read())


def address_of(published: Published) -> str:
    return published.addresses["s3"].removeprefix("s3://team/")


@pytest.mark.parametrize(
    ("what", "parts"), [("merged", {"merged"}), ("adapter", {"adapter"}), ("both", {"merged", "adapter"})]
)
def test_every_file_lies_there_with_its_digest_and_the_manifest_tells_of_it(
    bucket: Any, tmp_path: Path, what: str, parts: set[str]
) -> None:
    made = make_model(tmp_path)
    published = publish_to(tmp_path, made, s3=S3, what=what)
    place = address_of(published)
    manifest = json.loads(read(bucket, f"{place}/manifest.json"))
    listed = {**manifest["files"], **manifest["about"]}
    assert {f"{place}/{name}" for name in listed} | {f"{place}/manifest.json"} == set(keys(bucket))
    assert {name.partition("/")[0] for name in listed} == parts
    for name, entry in listed.items():
        data = read(bucket, f"{place}/{name}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert place == f"models/tiny-orders/{published.digest[:12]}"
    assert (manifest["run"], manifest["parents"]) == ("LoraFlow/7", published.parents)
    assert manifest["lineage"] == made.lineage
    assert published == Published.from_dict(
        json.loads((tmp_path / f"published-{published.digest[:12]}.json").read_text())
    )


def test_what_tells_where_things_lie_on_this_machine_stays_here(bucket: Any, tmp_path: Path) -> None:
    publish_to(tmp_path, make_model(tmp_path), s3=S3, what="both")
    assert not [key for key in keys(bucket) if key.endswith(("merge.json", "training.json"))]
    assert not [key for key in keys(bucket) if str(tmp_path).encode() in read(bucket, key)]


def test_a_file_that_is_gone_beside_its_manifest_is_brought_again(bucket: Any, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    publish_to(tmp_path, made, s3=S3)
    before = keys(bucket)
    (gone,) = [key for key in before if key.endswith("model-00001-of-00002.safetensors")]
    bucket.delete_object(Bucket="team", Key=gone)
    publish_to(tmp_path, made, s3=S3)
    assert sorted(keys(bucket)) == sorted(before)


def test_what_somebody_has_put_beside_the_adapter_stays_here(bucket: Any, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    folder = Path(made.adapter.path)
    (folder / "notes_with_token.txt").write_text("hf_SECRET")
    (folder / "tokenizer.link").symlink_to("/etc/passwd")
    (folder / "tokenizer.json").write_text("{}")
    publish_to(tmp_path, made, s3=S3, what="adapter")
    found = {key.rpartition("/")[2] for key in keys(bucket)}
    assert "tokenizer.json" in found
    assert not {"notes_with_token.txt", "tokenizer.link"} & found


def test_telling_it_twice_changes_nothing_and_names_who_was_first(bucket: Any, tmp_path: Path) -> None:
    first = publish_to(tmp_path, make_model(tmp_path), s3=S3)
    before = keys(bucket)
    again = publish_to(tmp_path, make_model(tmp_path), s3=S3)
    other = publish_to(tmp_path, make_model(tmp_path / "other", run="LoraFlow/8"), s3=S3)
    assert again == first
    assert (other.run, other.addresses) == ("LoraFlow/7", first.addresses)
    assert keys(bucket) == before


def test_another_model_is_another_publication(bucket: Any, tmp_path: Path) -> None:
    first = publish_to(tmp_path, make_model(tmp_path / "1"), s3=S3)
    second = publish_to(tmp_path, make_model(tmp_path / "2", weight=b"others"), s3=S3)
    assert first.addresses != second.addresses
    assert len([key for key in keys(bucket) if key.endswith("manifest.json")]) == 2


def test_nothing_is_published_that_did_not_pass_or_is_not_what_was_evaluated(bucket: Any, tmp_path: Path) -> None:
    failed = make_model(tmp_path, passed=False)
    with pytest.raises(LoraFlowError, match="the gate is not passed"):
        publish_to(tmp_path, failed, s3=S3)
    for part in ("merged", "adapter"):
        other = make_model(tmp_path)
        report = replace(other.report, parents={**other.report.parents, part: "0" * 64})
        with pytest.raises(LoraFlowError, match=f"is of another {part} model"):
            publish_to(tmp_path, replace(other, report=report), s3=S3)
    assert keys(bucket) == {}


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("merged-1/model-00002-of-00002.safetensors", ModelError),
        ("merged-1/config.json", ModelError),
        ("train-1/adapter/adapter_model.safetensors", CheckpointError),
    ],
)
def test_what_has_changed_since_it_was_made_is_not_published(
    bucket: Any, tmp_path: Path, file: str, error: type[Exception]
) -> None:
    made = make_model(tmp_path)
    (tmp_path / file).write_bytes(b"changed")
    with pytest.raises(error, match="is not as it was made"):
        publish_to(tmp_path, made, s3=S3, what="both")
    assert keys(bucket) == {}


class Failing:
    """A client that fails at its nth writing call, and remembers what was written."""

    def __init__(self, client: Any, after: int) -> None:
        self.client, self.left = client, after

    def __getattr__(self, name: str) -> Any:
        if name in ("upload_file", "put_object"):
            if not self.left:
                raise ConnectionResetError("gone")
            self.left -= 1
        return getattr(self.client, name)


def test_whatever_write_is_the_last_one_nothing_is_seen_and_the_next_try_brings_only_the_rest(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_model(tmp_path)
    for written in range(7):
        monkeypatch.setattr(publishing, "store_client", lambda: Failing(bucket, written))  # noqa: B023
        with pytest.raises(ConnectionResetError):
            publish_to(tmp_path, made, s3=f"{S3}/{written}")
        there = [key for key in keys(bucket) if key.startswith(f"models/{written}/")]
        assert len(there) == written
        assert not [key for key in there if key.endswith("manifest.json")]
        rest = Failing(bucket, 7 - min(written, 4))  # of the four files of the model none again
        monkeypatch.setattr(publishing, "store_client", lambda: rest)  # noqa: B023
        publish_to(tmp_path, made, s3=f"{S3}/{written}")


def test_an_object_of_another_content_is_written_anew(bucket: Any, tmp_path: Path) -> None:
    made = make_model(tmp_path)
    place = address_of(publish_to(tmp_path, made, s3=S3))
    bucket.delete_object(Bucket="team", Key=f"{place}/manifest.json")
    bucket.put_object(Bucket="team", Key=f"{place}/merged/config.json", Body=b"[]")
    publish_to(tmp_path, made, s3=S3)
    assert read(bucket, f"{place}/merged/config.json") == b"{}"


def test_of_two_at_once_the_first_ones_words_stay_and_the_manifest_tells_of_them(bucket: Any, tmp_path: Path) -> None:
    """The other one has written README and lineage, and dies before its manifest; then ours tells of what is there."""
    place = address_of(publish_to(tmp_path, make_model(tmp_path), s3=S3))
    bucket.delete_object(Bucket="team", Key=f"{place}/manifest.json")
    publish_to(tmp_path, make_model(tmp_path / "other", run="LoraFlow/8"), s3=S3)
    manifest = json.loads(read(bucket, f"{place}/manifest.json"))
    readme = read(bucket, f"{place}/merged/README.md")
    assert readme == b"# by LoraFlow/7\n"
    assert manifest["about"]["merged/README.md"]["sha256"] == hashlib.sha256(readme).hexdigest()
    assert manifest["run"] == "LoraFlow/8"


@pytest.mark.parametrize("found", [b"{}", b"no JSON", b'{"files": {"merged/config.json": {"sha256": "1"}}}'])
def test_a_manifest_of_something_else_is_left_alone(bucket: Any, tmp_path: Path, found: bytes) -> None:
    made = make_model(tmp_path)
    place = address_of(publish_to(tmp_path, made, s3=S3))
    bucket.put_object(Bucket="team", Key=f"{place}/manifest.json", Body=found)
    with pytest.raises(StorageError, match="tells of other files"):
        publish_to(tmp_path, made, s3=S3)
    assert read(bucket, f"{place}/manifest.json") == found


def test_a_store_that_refuses_is_named_without_a_secret(aws: dict[str, str], tmp_path: Path) -> None:
    made = make_model(tmp_path)
    with pytest.raises(StorageError, match="NoSuchBucket") as failed:
        publish_to(tmp_path, made, s3="s3://nobodys/models")
    assert aws["AWS_SECRET_ACCESS_KEY"] not in str(failed.value)


@pytest.mark.slow
def test_killed_at_any_moment_it_is_not_seen_and_goes_on(bucket: Any, aws: dict[str, str], tmp_path: Path) -> None:
    """A process that publishes, killed −9 later and later until it gets through."""
    command = [sys.executable, "-m", "tests.publish.publish_harness", str(tmp_path), json.dumps({"s3": S3})]
    seen: list[int] = []
    for wait_s in (0.0, 0.02, 0.05, 0.1, 0.2, 60.0):
        before = len(keys(bucket))
        process = subprocess.Popen(command, env={**os.environ, **aws})
        until_s = time.monotonic() + 60
        while process.poll() is None and len(keys(bucket)) == before and time.monotonic() < until_s:
            time.sleep(0.005)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        listed = [key for key in keys(bucket) if key.endswith("manifest.json")]
        if listed:
            files = json.loads(read(bucket, listed[0]))["files"]
            assert all(
                len(read(bucket, f"{os.path.dirname(listed[0])}/{name}")) == entry["bytes"]
                for name, entry in files.items()
            )
        seen.append(len(keys(bucket)))
    assert listed
    assert min(seen) < 7, "it was killed too late to show anything"
    assert seen == sorted(seen)
