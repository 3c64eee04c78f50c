"""A Dockerfile as a list of instructions, and what the tests of the images share."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "containers"
CPU, NEURON = FOLDER / "cpu.Dockerfile", FOLDER / "neuron.Dockerfile"
TORCHNEURON, TORCHNEURON_LOCK = FOLDER / "torchneuron.Dockerfile", FOLDER / "torchneuron-requirements.lock"
NEURON_TESTS = FOLDER / "neuron-tests.lock"
NEURON_WISHES, NEURON_LOCK = FOLDER / "neuron-requirements.in", FOLDER / "neuron-requirements.lock"


def instructions(path: Path) -> list[tuple[str, str]]:
    """`(RUN, pip install …)`: comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in found]


def values(path: Path, name: str) -> list[str]:
    """The arguments of every instruction of that name, in order."""
    return [rest for found, rest in instructions(path) if found == name]


def default(path: Path, argument: str) -> str:
    """What an ARG is when nobody says otherwise."""
    return next(rest.partition("=")[2] for rest in values(path, "ARG") if rest.startswith(f"{argument}="))


def pins(path: Path) -> dict[str, str]:
    """`{"numpy": "1.26.4"}` of a requirements file or a lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), flags=re.MULTILINE))


def with_mounted_packages(folder: Path) -> Path:
    """The CPU image without packages, for clusters whose pods mount them: a copy, since not every builder takes arguments."""
    text = CPU.read_text()
    assert text.count("\nARG TORCH=locked\n") == 1
    copy = folder / "cpu-mounted.Dockerfile"
    copy.write_text(text.replace("\nARG TORCH=locked\n", "\nARG TORCH=mounted\n"))
    return copy
