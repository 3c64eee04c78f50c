"""Where this project's own files lie, and the folder that its records and run directories go to. Loads no library.

Three layouts: a checkout and a code package that a pod has unpacked have config/ beside steps/; an installed package
carries config/ and flows/ inside steps/.
"""

from __future__ import annotations

from pathlib import Path

STEPS = Path(__file__).resolve().parents[1]
INSTALLED = STEPS / "_config"
"""The presets of an installed package."""
HOME = "hyperpod-lora"
"""Of an installed package, in the person's home directory."""


def project_root() -> Path:
    """The folder that holds steps/."""
    return STEPS.parent


def is_installed() -> bool:
    """Whether this is a package among others in site-packages, where nothing of a run belongs."""
    return INSTALLED.is_dir()


def config_root() -> Path:
    """The folder that holds the presets."""
    return INSTALLED if is_installed() else project_root() / "config"


def flow_file() -> Path:
    """The flow's file."""
    return (STEPS / "_flows" if is_installed() else project_root() / "flows") / "lora_flow.py"


def home() -> Path:
    """The folder that relative storage paths start from, whatever the working directory: the checkout, else `~/hyperpod-lora`."""
    return Path.home() / HOME if is_installed() else project_root()


def package_sources() -> list[tuple[Path, str]]:
    """What a code package holds beside the flow: (folder here, its name there). An installed steps/ has the presets inside."""
    steps = (STEPS, "steps")
    return [steps] if is_installed() else [steps, (config_root(), "config")]
