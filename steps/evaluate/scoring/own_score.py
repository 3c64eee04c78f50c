"""A score of a person's own: `module:function`, named in a data preset or in `evaluation.score`, never by data.

Used by `scores`, and by `start` before anything is fetched. The function takes (answer, reference), both without thinking, and
returns a number from 0 to 1, or a bool.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path

from steps.errors import ConfigError, Problem

SETTING = "evaluation.score"


@functools.cache
def load_own(name: str) -> Callable[[str, str], float]:
    """The function, with its result checked.

    Raises:
        ConfigError: the module cannot be imported or has no such function; when called: the function failed, or returned
            something else.
    """
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a person's module may raise anything
        where = "it must be installed, or lie in the project's folder or on PYTHONPATH"
        raise _problem(name, f"cannot be loaded: {type(error).__name__}: {error}; {where}") from error
    if not callable(function):
        raise _problem(name, f"is a {type(function).__name__}, expected a function of (answer, reference)")

    def score(answer: str, reference: str) -> float:
        try:
            found = function(answer, reference)
            value = float(found)
        except Exception as error:  # as above
            raise _problem(name, f"failed on the answer {answer[:80]!r}: {type(error).__name__}: {error}") from error
        if not 0 <= value <= 1 or math.isnan(value):
            raise _problem(name, f"returned {found!r} for the answer {answer[:80]!r}; expected a number from 0 to 1")
        return value

    return score


def source_of(name: str) -> Path | None:
    """The file that the function's module was read from: another text there is another score.

    Raises:
        ConfigError: it cannot be imported.
    """
    load_own(name)
    found = getattr(importlib.import_module(name.partition(":")[0]), "__file__", None)
    return Path(found) if found else None


def _problem(name: str, what: str) -> ConfigError:
    return ConfigError([Problem(SETTING, f"{name} {what}")])
