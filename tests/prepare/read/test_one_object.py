"""Files that hold one JSON object, or lists of messages: the rows inside, whichever program wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from steps.prepare.read.formats import read_rows

ROWS = [{"question": "a", "answer": "x"}, {"question": "b", "answer": "y"}]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
READ: dict[str, tuple[Any, list[Any]]] = {
    "a wrapper": ({"data": ROWS}, ROWS),
    "a wrapper with a version": ({"version": "1", "n": 2, "data": ROWS}, ROWS),
    "columns of pandas": ({"question": {"0": "a", "1": "b"}, "answer": {"0": "x", "1": "y"}}, ROWS),
    "pandas by index": ({"0": ROWS[0], "1": ROWS[1]}, ROWS),
    "pandas split": ({"columns": ["question", "answer"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]}, ROWS),
    "pandas table": ({"schema": {"fields": [{"name": "a"}]}, "data": ROWS}, ROWS),
    "a list for each column": ({"question": ["a", "b"], "answer": ["x", "y"]}, ROWS),
    "a viewer's answer": ({"features": [{"name": "q"}], "rows": ROWS}, ROWS),
    "conversations in conversations": ({"conversations": [{"conversations": CHAT}]}, [{"conversations": CHAT}]),
    "a column of conversations": ({"messages": [CHAT, CHAT]}, [{"messages": CHAT}] * 2),
    "a list of conversations": ([CHAT, CHAT], [{"messages": CHAT}] * 2),
    "one conversation": ({"messages": CHAT}, [{"messages": CHAT}]),
    "one row with tools": (
        {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]},
        [{"prompt": "a", "completion": "b", "tools": [{"name": "f"}]}],
    ),
    "one row": (ROWS[0], ROWS[:1]),
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(("content", "rows"), READ.values(), ids=READ)
def test_the_rows_inside_are_read(tmp_path: Path, content: Any, rows: list[Any], name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(content, indent=indent))
    assert [row.values for row in read_rows(tmp_path / name)] == rows


def test_a_list_of_messages_on_each_line_is_a_row_each(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n" + json.dumps(CHAT) + "\n")
    assert [(row.line, row.values) for row in read_rows(tmp_path / "a.jsonl")] == [
        (1, {"messages": CHAT}),
        (2, {"messages": CHAT}),
    ]


REFUSED = {
    "several lists": ({"train": ROWS, "test": ROWS}, r"several lists of rows \(train, test\): put each into a file"),
    "columns of other lengths": (
        {"question": ["a", "b"], "answer": ["x"]},
        r"not equally long \(question 2, answer 1\)",
    ),
    "rows two levels down": ({"result": {"items": ROWS}}, r"one JSON object with the keys result.*jq \.KEY"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_several_things_is_named(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        list(read_rows(tmp_path / "a.json"))


ENCODED = {
    "plain": ("my data.csv", r"column 8.*: iconv -f WINDOWS-1252 -t UTF-8 '.*my data\.csv' > utf8\.csv"),
    "gzip": ("a.csv.gz", r"column 8.*: zcat .*a\.csv\.gz \| iconv -f WINDOWS-1252 -t UTF-8 > utf8\.csv"),
}


@pytest.mark.parametrize(("name", "words"), ENCODED.values(), ids=ENCODED)
def test_another_encoding_is_named_with_line_column_and_a_command_that_works(
    tmp_path: Path, name: str, words: str
) -> None:
    import gzip
    import subprocess

    file, content = tmp_path / name, "question,answer\nGr\u00fc\u00dfe,M\u00fcde\nb,y\n".encode("cp1252")
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=":2: not UTF-8 .*" + words.replace("column 8", "column 3")) as caught:
        list(read_rows(file))
    command = str(caught.value).split("wrote it: ")[1].split(" (WINDOWS-1252")[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [row.values["answer"] for row in read_rows(tmp_path / "utf8.csv")] == ["M\u00fcde", "y"]
