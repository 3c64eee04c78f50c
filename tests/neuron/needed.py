"""What the tests of the neuron backend need, and where it comes from. Imports nothing that may be missing."""

from __future__ import annotations

import importlib.util

STAND_IN = (
    "elsewhere: make test-neuron-stand-in NXD_SRC=…, the src folder of the public repository aws-neuron/neuronx-distributed at "
    "tag v2.26.0; it makes .venv-stand-in (Python 3.11, torch 2.8.0, torch_xla 2.8.1, optimum-neuron 0.4.5) and puts "
    "tests/neuron/stand_in on the path, which plays the cores"
)
LIBRARIES = ("torch_xla", "neuronx_distributed", "optimum.neuron")
"""In the image of containers/neuron.Dockerfile, and in no lock of ours: AWS's package index alone has them."""
TOOLS = ("pytest", "pytest_timeout", "hypothesis")
"""In the same image when it is built with TESTS=yes."""


def is_here(name: str) -> bool:
    """Can this module be imported? `optimum.neuron` of an optimum that is not there cannot."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def missing(names: tuple[str, ...]) -> list[str]:
    """Those that are not here."""
    return [name for name in names if not is_here(name)]


def why_not() -> str:
    """Why the tests cannot run here and how they can, in words; empty if they can."""
    libraries, tools = missing(LIBRARIES), missing(TOOLS)
    if not libraries and not tools:
        return ""
    lines = [
        f"the neuron backend's tests cannot run here, nothing was tested: {', '.join(libraries + tools)} not installed"
    ]
    lines += [
        "on Trainium: docker build -f containers/neuron.Dockerfile --build-arg TESTS=yes ., then in that image, in this "
        "repository's root: python -m tests.neuron (docs/trainium.md has the whole command)"
    ]
    if libraries:
        lines += [STAND_IN]
    elif tools:
        lines += ["or: pip install --no-deps --require-hashes -r containers/neuron-tests.lock"]
    return "\n".join(lines)
