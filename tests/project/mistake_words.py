"""What every message to a person who made a mistake has to be; shared by the tables of mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest

from steps.errors import ConfigError, LoraFlowError

EATEN = re.compile(r"\*")
"""Metaflow takes it for the mark of bold text and leaves it out of what a person reads."""
NOT_FOR_PEOPLE = re.compile(r'Traceback|^\s*File ".*", line \d|object at 0x|<class |\w+Error\(|NoneType')


def told(call: Callable[[], object]) -> str:
    """The message of one of this project's errors that `call` raises; any other exception fails the test."""
    with pytest.raises(LoraFlowError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.headline
    assert len(message.split()) >= 4, f"too short to help: {message!r}"
    assert not NOT_FOR_PEOPLE.search(message), message
    assert not EATEN.search(message), message
    if isinstance(caught.value, ConfigError):
        assert all(problem.path.strip() and problem.message.strip() for problem in caught.value.problems)
    return message


def assert_tells(call: Callable[[], object], words: Iterable[str]) -> None:
    """The message holds all the words: what failed, where, what was expected and found, what to do."""
    message = told(call)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
