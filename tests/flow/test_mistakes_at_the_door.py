"""Every mistake of the tables once more as a person makes it: through the flow's own command, in a process of its own.

The tables are those of `test_mistakes` and `test_mistakes_in_files`; where Metaflow's own command line answers first, `FIRST`
has its words. One row of each kind runs in `make test`, all of them in `make test-all`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.base.sources.random import write_tiny
from steps.settings.catalog import RandomModel
from tests.flow.flow_harness import PROJECT, SMALL, Place, run_id_of
from tests.project.mistake_words import NOT_FOR_PEOPLE
from tests.project.test_mistakes_in_files import ADAPTERS, DATA, MODELS, OTHER, PAIR, lines
from tests.project.test_mistakes_in_files import SMALL as SMALL_MODEL
from tests.settings.test_mistakes import LLAMA, ON_NEURON, PARAMETERS, SETTINGS, TOGETHER, UNFIT

pytestmark = pytest.mark.timeout(300)

FIRST: dict[str, list[str]] = {
    "a parameter misspelt": ["no such option: --lora-rnk", "did you mean '--lora-rank'"],
    "a word for a number of steps": ["'--max-steps'", "ten is not a valid integer"],
    "a folder that is gone": ["--model: no such file or folder", "my-model", "looked for in /"],
}
"""What the command says of itself where that comes before our own look."""
IN_MAKE_TEST = (
    *("a key misspelt", "a parameter misspelt", "a batch that does not divide", "a target of another family"),
    "pickles only",
)
WHOLE = ("broken JSON in line 2",)
FITTING = RandomModel(
    hidden_size=LLAMA["hidden_size"],
    intermediate_size=LLAMA["intermediate_size"],
    max_positions=LLAMA["max_position_embeddings"],
    layers=1,
    heads=2,
    kv_heads=1,
)
"""A real folder with the shape that `UNFIT` is held against."""


def rows(table: Mapping[str, Any]) -> list[Any]:
    """A parameter for each row, slow but for those of `IN_MAKE_TEST`."""
    return [pytest.param(name, id=name, marks=marks_of(name)) for name in table]


def marks_of(name: str) -> Any:
    """None for what runs in `make test`."""
    return () if name in IN_MAKE_TEST else pytest.mark.whole if name in WHOLE else pytest.mark.slow


def assert_answers(place: Place, words: Iterable[str], name: str, command: list[str]) -> str:
    """The command fails and says all the words, and nothing that is not for people; returns all that it said."""
    done = place.call(command, timeout_s=200)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    missing = [word for word in FIRST.get(name, words) if word not in said]
    assert not missing, f"{missing} not in: {said}"
    assert not NOT_FOR_PEOPLE.search(said), said
    return said


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options as they stand on a command line."""
    return [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def door(module_place: Place) -> Place:
    """One place for all: what start has fetched for one row is there for the next."""
    module_place.write_config()
    return module_place


def run_words(place: Place, options: Mapping[str, Any], **settings: Any) -> list[str]:
    """`run` of the tiny model with these options and a Config of its own."""
    place.write_config(**settings)
    return place.command(
        "--config", "config", str(place.config), "run", *as_words({"model": "tiny", "max_steps": 1, **options})
    )


@pytest.mark.parametrize("name", rows(SETTINGS))
def test_in_the_config_file(door: Place, name: str) -> None:
    text, words = SETTINGS[name]
    (door.folder / "mistaken.yaml").write_text(text)
    assert_answers(door, words, name, door.command("--config", "config", str(door.folder / "mistaken.yaml"), "run"))


@pytest.mark.parametrize("name", rows(PARAMETERS))
def test_in_a_parameter(door: Place, name: str) -> None:
    options, words = PARAMETERS[name]
    assert_answers(door, words, name, run_words(door, options))


@pytest.mark.parametrize("name", rows(TOGETHER))
def test_in_names_and_in_what_contradicts(door: Place, name: str) -> None:
    options, words = TOGETHER[name]
    assert_answers(door, words, name, run_words(door, options))


@pytest.mark.parametrize("name", rows(ON_NEURON))
def test_in_the_layout(door: Place, name: str) -> None:
    launcher, options, words = ON_NEURON[name]
    assert_answers(door, words, name, run_words(door, options, launcher=launcher))


@pytest.mark.parametrize("name", rows(UNFIT))
def test_in_what_the_model_can_take(door: Place, name: str) -> None:
    options, words = UNFIT[name]
    folder = door.folder / "llama"
    if not folder.exists():
        write_tiny(folder, FITTING)
    assert_answers(door, words, name, run_words(door, {"model": folder, "sequence_length": 64, **options}))


@pytest.mark.slow
def test_in_what_the_compiled_model_should_be(door: Place) -> None:
    served = {"enabled": True, "tensor_parallel": 3, "instance_type": "trn1.32xlarge"}
    words = [
        "inference.tensor_parallel: must divide the model's",
        "inference.dtype: must be the merged model's type, float32",
    ]
    said = assert_answers(door, words, "compiled", run_words(door, {}, inference=served))
    assert "base model:" not in said


@pytest.fixture(scope="module")
def small(door: Place) -> Path:
    """The model that the tables of files are about."""
    write_tiny(door.folder / "small", SMALL_MODEL)
    return door.folder / "small"


@pytest.mark.parametrize("name", rows(DATA))
def test_in_the_data(door: Place, small: Path, tmp_path: Path, name: str) -> None:
    file, content, preset, words = DATA[name]
    (tmp_path / file).write_bytes(content)
    options = {"model": small, "sequence_length": 64, "global_batch": 2, "dataset": tmp_path / file}
    if not preset:
        assert_answers(door, words, name, run_words(door, options))
        return
    project = copy_of_project(tmp_path / "project")
    (project / "config" / "datasets" / "mine.yaml").write_text(yaml.safe_dump({"path": str(tmp_path / file), **preset}))
    command = run_words(door, {**options, "dataset": "mine"})
    assert_answers(door, words, name, [command[0], str(project / "flows" / "lora_flow.py"), *command[2:]])


@pytest.mark.whole
def test_the_first_rows_are_looked_at_before_the_model_is_fetched(place: Place) -> None:
    (place.folder / "rows.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')
    words = ["its columns fit no known shape: found antwort, frage"]
    assert_answers(place, words, "", run_words(place, {"dataset": place.folder / "rows.jsonl"}))
    assert not (place.folder / "cache" / "models").exists()


def copy_of_project(folder: Path) -> Path:
    """A preset of one's own is a file in config/: so it needs a project of its own."""
    for name in ("flows", "steps", "config"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".metaflow"))
    return folder


@pytest.mark.parametrize("name", rows(MODELS))
def test_in_a_model_folder(door: Place, small: Path, tmp_path: Path, name: str) -> None:
    spoil, words = MODELS[name]
    folder = Path(shutil.copytree(small, tmp_path / "my-model"))
    spoil(folder)
    assert_answers(door, [str(folder), *words], name, run_words(door, {"model": folder, "sequence_length": 64}))


@pytest.fixture(scope="module")
def trained(door: Place, small: Path) -> tuple[str, Path]:
    """A run of the small model: its id, and the adapter's folder."""
    (door.folder / "pairs.jsonl").write_bytes(lines(PAIR, OTHER, {**PAIR, "answer": "5"}, {**OTHER, "answer": "7"}))
    options = {"model": small, "dataset": door.folder / "pairs.jsonl", "sequence_length": 64, "global_batch": 2}
    done = door.call(run_words(door, {**options, "validation_fraction": 0.5}))
    assert done.returncode == 0, done.stdout + done.stderr
    run_id = run_id_of(done.stdout)
    return run_id, Path(door.artifact(run_id, "train", "adapter")["path"])


@pytest.mark.parametrize("name", rows(ADAPTERS))
def test_in_an_adapter(door: Place, trained: tuple[str, Path], name: str) -> None:
    make, words = ADAPTERS[name]
    run_id, adapter = trained
    for folder in (adapter, *adapter.parents[1].glob("merged-*")):
        shutil.rmtree(folder)
    make(adapter)
    assert_answers(door, words, name, door.command("resume", "merge", "--origin-run-id", run_id))


UNREACHABLE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
AWAY: dict[str, tuple[dict[str, str], dict[str, Any], list[str]]] = {
    "a hub model, offline": ({}, {"model": "someone/small"}, ["someone/small"]),
    "a hub model out of reach": (UNREACHABLE, {"model": "someone/small"}, ["someone/small", "the hub is out of reach"]),
    "a gated model out of reach": (UNREACHABLE, {"model": "llama3.2-1b"}, ["meta-llama/", "the hub is out of reach"]),
    "hub data, offline": ({}, {"dataset": "someone/data"}, ["someone/data"]),
    "hub data out of reach": (UNREACHABLE, {"dataset": "someone/data"}, ["someone/data", "Couldn't reach"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AWAY)
def test_in_what_is_out_of_reach(door: Place, name: str) -> None:
    environment, options, words = AWAY[name]
    away = Place(door.folder, {**door.environment, **environment})
    assert "Retry" not in assert_answers(away, words, name, run_words(away, options)), "it fails at once"


ROOM: dict[str, tuple[Callable[[Path], dict[str, Any]], list[str]]] = {
    "no room": (lambda folder: {"min_free_gib": 1e9}, ["storage.min_free_gib", "GiB are free"]),
    "a file for the run directory": (lambda folder: {"root": str(folder / "file")}, ["a file", "storage.root"]),
    "a sealed run directory": (lambda folder: {"root": "/proc/runs"}, ["/proc/runs", "can never be there"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOM)
def test_in_where_files_go(door: Place, tmp_path: Path, name: str) -> None:
    storage, words = ROOM[name]
    (tmp_path / "file").write_text("")
    assert_answers(door, words, name, run_words(door, {}, storage=storage(tmp_path)))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_in_a_library_that_is_not_installed(door: Place) -> None:
    words = run_words(door, {}, reporting={"report_to": ["wandb"]})
    assert_answers(door, ["reporting.report_to: wandb needs the library wandb", "pip install wandb"], "", words)


def test_every_row_that_make_test_runs_is_a_row() -> None:
    tables = (SETTINGS, PARAMETERS, TOGETHER, ON_NEURON, UNFIT, DATA, MODELS, ADAPTERS)
    assert {*IN_MAKE_TEST, *FIRST} <= {name for table in tables for name in table}
    assert sum(len(table) for table in (*tables, AWAY, ROOM)) >= 110
    assert SMALL[1] == "tiny"
