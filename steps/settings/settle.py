"""Settings and options as they are given → one Plan, or all that is wrong with both, at once.

Called where a command begins (`hyperpod-lora run` and `jobspec`) and by the flow's `start`. Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from steps.errors import ConfigError, Mistakes
from steps.settings.config import Settings, parse_options
from steps.settings.options import OPTIONS, Options
from steps.settings.plan import Plan
from steps.settings.resolve import Look, resolve

TOGETHER = ("--processes", "--global-batch", "--sharding", "--quantization", "--method", "launcher.")
"""Contradictions between values of which one may be wrong itself: told when all of them are right."""


def settle(
    read: Callable[[], Settings], given: Mapping[str, Any], *, fast_bf16: bool = False, look: Look | None = None
) -> Plan:
    """The plan of these options with the settings that `read` gives, whose section `run` has defaults for options.

    `look` is shown the data set, and may have mistakes to tell of it.

    What can be judged in spite of a mistake is judged with the usual value in its place.

    Raises:
        ConfigError: with every mistake in settings, options, presets and templates, and every contradiction.
    """
    mistakes = Mistakes()
    settings = mistakes.look(read, Settings())
    options = mistakes.look(partial(parse_options, {**settings.run, **given}), None)
    if options and not mistakes.problems:
        return resolve(settings, options, fast_bf16=fast_bf16, look=look)
    further = Mistakes()
    further.look(partial(resolve, settings, options or _sound(mistakes, given), look=look), None)
    raise ConfigError([*mistakes.problems, *(item for item in further.problems if not item.path.startswith(TOGETHER))])


def _sound(mistakes: Mistakes, given: Mapping[str, Any]) -> Options:
    """The options without those that are wrong."""
    wrong = {problem.path.removeprefix("--").replace("-", "_") for problem in mistakes.problems}
    return parse_options({name: value for name, value in given.items() if name in OPTIONS and name not in wrong})
