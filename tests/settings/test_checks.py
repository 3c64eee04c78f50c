"""Libraries that are missing are named before anything is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from steps.settings.checks import check_libraries
from tests.project.mistake_words import assert_tells
from tests.shared.sample_records import plan_of

FOUR_BITS: dict[str, Any] = {"quantization": "4bit"}
TRACKED: dict[str, Any] = {"reporting": {"report_to": ["tensorboard", "wandb"]}}


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        pytest.param(
            {},
            FOUR_BITS,
            ["--quantization: 4bit needs", "bitsandbytes", "pip install '.[quantization]'"],
            id="4bit",
        ),
        pytest.param(
            TRACKED, {}, ["reporting.report_to: wandb needs the library wandb", "pip install wandb"], id="a tracker"
        ),
        pytest.param(TRACKED, FOUR_BITS, ["bitsandbytes", "'.[tracking]'", "wandb"], id="all at once"),
    ],
)
def test_a_library_that_is_not_here_is_named(
    settings: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    plan = plan_of(settings, **options)
    assert_tells(lambda: check_libraries(plan, lambda name: False), words)
    check_libraries(plan, lambda name: True)


def test_nothing_more_is_needed_by_a_plain_plan_and_nothing_is_known_of_a_cluster_s_image() -> None:
    check_libraries(plan_of(), lambda name: False)
    on_cluster = plan_of(quantization="4bit")
    launcher = on_cluster.settings.launcher.model_copy(update={"kind": "pytorchjob"})
    settings = on_cluster.settings.model_copy(update={"launcher": launcher})
    check_libraries(on_cluster.model_copy(update={"settings": settings}), lambda name: False)


def test_trackers_are_looked_for_here_even_where_workers_run_elsewhere() -> None:
    plan = plan_of(TRACKED, quantization="4bit")
    launcher = plan.settings.launcher.model_copy(update={"kind": "pytorchjob"})
    settings = plan.settings.model_copy(update={"launcher": launcher})
    on_cluster = plan.model_copy(update={"settings": settings})
    assert_tells(lambda: check_libraries(on_cluster, lambda name: False), ["wandb needs the library wandb"])
