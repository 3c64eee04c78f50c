"""Every architecture of the matrix, through the code that trains and merges. Each test also holds its row of the docs' table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix import generation, table
from tests.matrix.architectures import CONFIGS
from tests.matrix.measure import CLOSE, Outcome

QUICK = ("llama", "gemma2", "qwen3_moe", "gpt2", "phimoe", "bloom", "gemma4_text")
"""One of each kind: ours, windows and soft caps, experts, Conv1D, renamed experts, ALiBi in eager attention, shared keys."""
REFUSED = dict.fromkeys(("mamba2", "falcon_h1"), "incompatible with Mamba-based models")
LEAKING = {
    *("granitemoehybrid", "bloom", "opt", "mpt", "lfm2", "lfm2_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    *("gpt_oss", "xglm"),
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_an_architecture_is_right_in_every_property_or_refused(name: str, tmp_path: Path) -> None:
    found, answers = table.look_at(name, tmp_path), generation.look_at(tmp_path / "base")
    assert answers in generation.WORDS.values()
    assert table.line(name, found, answers) in table.PAGE.read_text().splitlines(), "python -m tests.matrix.table"
    if isinstance(found, str):
        assert REFUSED[name] in found
        return
    assert_right(found)
    assert (found.packed_loss is None) == bool(found.packing) == (name in LEAKING)


def assert_right(found: Outcome) -> None:
    assert found.adapted > 0
    assert found.packed_loss is None or found.packed_loss < CLOSE
    assert found.padded_loss < CLOSE
    assert found.plain_loss < CLOSE
    assert found.merge < 1e-6
    assert found.reload < CLOSE


def test_the_table_has_a_row_for_every_architecture() -> None:
    rows = [row.split("|")[1].strip() for row in table.PAGE.read_text().splitlines() if row.startswith("| ")]
    assert rows[1:] == list(CONFIGS)
    assert set(QUICK) | set(REFUSED) | LEAKING <= set(CONFIGS)
