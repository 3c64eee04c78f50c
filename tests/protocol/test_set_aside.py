"""What is damaged is renamed and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import StorageError
from steps.protocol.set_aside import NAME, set_aside


@pytest.mark.parametrize(("hidden", "stem"), [(False, "prepared-x"), (True, ".prepared-x")])
def test_what_was_set_aside_before_is_kept(tmp_path: Path, hidden: bool, stem: str) -> None:
    path = tmp_path / "prepared-x"
    for number in range(3):
        path.mkdir()
        (path / str(number)).touch()
        set_aside(path, hidden=hidden)
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == [f"{stem}.damaged", f"{stem}.damaged-2", f"{stem}.damaged-3"]
    assert all(NAME.search(name) for name in names)
    assert (tmp_path / f"{stem}.damaged-3" / "2").is_file()


def test_what_cannot_be_renamed_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="setting"):
        set_aside(tmp_path / "gone")
