"""Whatever stands in a file that a person or another program wrote: it is read, or refused in words. Never anything else."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from metaflow.exception import MetaflowException

from steps.base.inspect import inspect
from steps.base.sources.random import write_tiny
from steps.errors import CheckpointError, LoraFlowError, ModelError
from steps.flow.parameters import read_config
from steps.job.history import load
from steps.merge.inputs import read_adapter, read_base
from steps.prepare.chat.template import read_templates
from steps.protocol.failure_record import read_records
from steps.protocol.prepared import verify
from steps.protocol.safetensors_header import read_header
from steps.settings.catalog import DatasetPreset, ModelPreset, RandomModel, read_preset
from steps.train.spec import read_spec
from tests.project.mistake_words import NOT_FOR_PEOPLE

TINY = RandomModel(hidden_size=8, layers=1, heads=1, kv_heads=1, intermediate_size=8, max_positions=8)
KEYS = (
    "__metadata__", "data_offsets", "dtype", "shape", "weight_map", "model_type", "quantization_config", "architectures",
    "tie_word_embeddings", "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora",
    "modules_to_save", "fan_in_fan_out", "bias", "chat_template", "name", "template", "default", "bos_token", "content",
    "schema", "record", "files", "seal", "attempts", "identity", "forgiven", "verdict", "number", "created_s", "steps",
    "lora", "failure_class", "exit_code", "rank", "step", "hub", "columns", "shape", "retry", "max_attempts",
)  # fmt: skip
WORDS = (
    "",
    "default",
    "F32",
    "LORA",
    "llama",
    "model.safetensors",
    "hyperpod-lora/history/1",
    "{{ x }}",
    "{% if %}",
    "\0",
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=4)
names = st.sampled_from(KEYS) | st.text(max_size=3)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))
texts = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(names, values, max_size=6).map(lambda value: json.dumps(value).encode()),
)
QUICK = (Phase.explicit, Phase.generate)
"""A failing file is small already, and each example costs a folder."""
DEEP = b"[" * 10_000
"""Ten times as deep as Python goes."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in which one file at a time is replaced."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny(folder, TINY)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": []}')
    shutil.copyfile(folder / "model.safetensors", folder / "adapter_model.safetensors")
    return folder


def template_of(folder: Path) -> object:
    return read_templates(folder, own="", arguments={}, adds_bos=False)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a model's config": ("config.json", inspect),
    "a model's index": ("model.safetensors.index.json", inspect),
    "a merge's base config": ("config.json", read_base),
    "a merge's index": ("model.safetensors.index.json", read_base),
    "an adapter's config": ("adapter_config.json", lambda folder: read_adapter(folder, read_base(folder))),
    "a tokenizer's config": ("tokenizer_config.json", template_of),
    "a template": ("chat_template.jinja", template_of),
    "a data preset": ("a.yaml", lambda folder: read_preset(folder / "a.yaml", DatasetPreset)),
    "a model preset": ("a.yaml", lambda folder: read_preset(folder / "a.yaml", ModelPreset)),
    "a history": ("history.json", lambda folder: load(folder / "history.json", "abc")),
    "a spec": ("spec.json", lambda folder: read_spec(folder / "spec.json")),
    "a manifest": ("manifest.json", verify),
    "a failure record": ("failure-0.json", read_records),
}


@contextmanager
def folder_with(whole: Path, name: str, content: bytes) -> Iterator[Path]:
    """The whole folder's files, by link, but for one that holds `content`."""
    folder = Path(tempfile.mkdtemp(prefix="any-file-"))
    for path in whole.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_bytes(content)
    yield folder
    shutil.rmtree(folder)


def assert_read_or_refused(call: Callable[[], object]) -> None:
    """No other exception, and words for people."""
    said = "it was read without a word"
    try:
        call()
    except (LoraFlowError, MetaflowException) as error:
        said = str(error)
    assert len(said.split()) >= 4, said
    assert not NOT_FOR_PEOPLE.search(said), said


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
@settings(deadline=None, max_examples=25, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=DEEP)
@example(content=b"")
@example(content=b"\xff\xfe")
@given(content=texts)
def test_any_file_is_read_or_refused_in_words(
    whole: Path, name: str, read: Callable[[Path], object], content: bytes
) -> None:
    with folder_with(whole, name, content) as folder:
        assert_read_or_refused(lambda: read(folder))


headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    values | st.fixed_dictionaries({"dtype": scalars, "shape": values, "data_offsets": values}),
    max_size=3,
)


def as_safetensors(header: object, rest: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + rest


@settings(deadline=None, max_examples=40, phases=QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(header=DEEP, rest=b"")
@example(header={}, rest=b"")
@example(header={"a": {"dtype": "F32", "shape": "four", "data_offsets": [0, 4]}}, rest=bytes(4))
@example(header={"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}, rest=bytes(4))
@example(header={"a": {"dtype": 4, "shape": [1], "data_offsets": [0, 4]}}, rest=bytes(4))
@given(header=headers | texts, rest=st.binary(max_size=12))
def test_any_safetensors_header_is_read_or_refused_in_words(whole: Path, header: Any, rest: bytes) -> None:
    with folder_with(whole, "model.safetensors", as_safetensors(header, rest)) as folder:
        assert_read_or_refused(lambda: inspect(folder))
        for error in (ModelError, CheckpointError):
            assert_read_or_refused(lambda error=error: read_header(folder / "model.safetensors", error=error))  # type: ignore[misc]


@settings(deadline=None, max_examples=40)
@example(text="[" * 5_000)
@example(text="a: &a [*a]")
@example(text="{retry: {max_attempts: 1}, retry: 2}")
@given(text=st.text(max_size=40) | values.map(json.dumps))
def test_any_config_text_gives_settings_or_words(text: str) -> None:
    with suppress(UnicodeEncodeError):
        assert_read_or_refused(lambda: read_config(text))
