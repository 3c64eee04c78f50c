"""Which libraries a plan needs beyond those that are always installed. Pure; `stages` calls it, and says what is installed.

Only for workers on this machine: on a cluster they have their image's libraries, which nobody can look into from here.
"""

from __future__ import annotations

from collections.abc import Callable

from steps.errors import ConfigError, Problem
from steps.settings.plan import Plan

EXTRAS = {"bitsandbytes": "quantization", "tensorboard": "tracking"}
"""Those that come with an extra of this project."""


def check_libraries(plan: Plan, is_installed: Callable[[str], bool]) -> None:
    """Whether all that the plan asks for can be loaded, before anything is fetched.

    Raises:
        ConfigError: with each library that is missing.
    """
    if plan.settings.is_on_cluster:
        return
    asked: list[tuple[str, str, str]] = [
        ("reporting.report_to", name, name) for name in plan.settings.reporting.report_to
    ]
    if plan.quantization == "4bit":
        asked.append(("--quantization", "4bit", "bitsandbytes"))
    problems = [
        Problem(where, f"{what} needs the library {name}, which is not installed here; {how_to_install(name)}")
        for where, what, name in asked
        if not is_installed(name)
    ]
    if problems:
        raise ConfigError(problems)


def how_to_install(name: str) -> str:
    """What to type, or what to do without."""
    package = f"'.[{EXTRAS[name]}]'" if name in EXTRAS else name
    return f"install it (pip install {package}) or leave it out"
