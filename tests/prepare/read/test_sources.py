from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steps.errors import DataError
from steps.prepare.read import json_stream, orders
from steps.prepare.read.files import Row
from steps.prepare.read.formats import read_rows
from steps.prepare.read.sources import open_source
from steps.settings.catalog import DatasetPreset
from tests.prepare.prepare_data import questions, write_lines

ROWS = [{"question": "Wie spät, “bitte”?", "answer": "zwei\nUhr"}, {"question": "b,c", "answer": 'say "d"'}]


def as_csv(delimiter: str) -> bytes:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
READABLE = {
    "JSONL": ("a.jsonl", LINES),
    "JSONL with CRLF and empty lines": ("a.jsonl", b"\r\n" + LINES.replace(b"\n", b"\r\n\r\n") + b"\r\n"),
    "JSONL with a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + LINES),
    "JSON array": ("a.json", json.dumps(ROWS, indent=1).encode()),
    "JSON array with a byte order mark": ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    "lines of objects named .json": ("a.json", LINES),
    "CSV": ("a.csv", as_csv(",")),
    "CSV with a byte order mark": ("a.csv", b"\xef\xbb\xbf" + as_csv(",")),
    "TSV": ("a.TSV", as_csv("\t")),
}


@pytest.mark.parametrize(("name", "content"), READABLE.values(), ids=READABLE)
def test_the_same_rows_come_out_of_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = list(read_rows(tmp_path / name))
    assert [row.values for row in found] == ROWS
    assert found[-1].done == len(content)


def test_parquet_gives_rows_and_counts_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    source = open_source(DatasetPreset(path=str(tmp_path / "a.parquet")), tmp_path)
    assert [row.values for row in source.rows()] == ROWS
    assert source.size == 2


BROKEN = {
    "empty": ("a.jsonl", b"", ["a.jsonl is empty (0 bytes)"]),
    "broken JSON line": ("a.jsonl", b'{"a": 1}\n{"a": \n', ["a.jsonl:2", "not valid JSON"]),
    "a line that is no object": (
        "a.jsonl",
        b'{"a": 1}\n[1]\n',
        ["a.jsonl:2", "expected a JSON object, found an array"],
    ),
    "not UTF-8": ("a.jsonl", '{"a": "é"}'.encode("latin-1"), ["a.jsonl:1", "not UTF-8", "0xe9", "iconv"]),
    "UTF-16 that breaks off": ("a.jsonl", '{"a": 1}'.encode("utf-16")[:-1], ["a.jsonl", "UTF-16"]),
    "NUL bytes": ("a.jsonl", b'{"a": 1}\n\0\0\0\n', ["a.jsonl:2", "NUL"]),
    "NUL bytes in an array": ("a.json", b'[{"a": "\0"}]', ["a.json:1", "NUL"]),
    "NUL bytes in CSV": ("a.csv", b"a,b\n1,\0\n", ["a.csv:2", "NUL"]),
    "an object, not an array": (
        "a.json",
        b'{"data": [1]}',
        ["one JSON object", "keys data", "expected an array"],
    ),
    "an object over several lines": ("a.json", b'{\n "data": []\n}', ["one JSON object", "expected an array"]),
    "a string": ("a.json", b'"text"', ["expected a JSON array of objects", "text"]),
    "an array of numbers": ("a.json", b"[1, 2]", ["row 1", "found a number"]),
    "an array that breaks off": ("a.json", b'[{"a": 1},\n{"a": ', ["a.json:2", "not valid JSON"]),
    "an array with a missing comma": ("a.json", b'[\n{"a": 1}\n{"a": 2}]', ["a.json:3", "not valid JSON"]),
    "an array that is not UTF-8": ("a.json", b'[{"a": "\xe9"}]', ["a.json:1", "not UTF-8"]),
    "CSV with too many fields": ("a.csv", b"q,a\n1,2\n1,2,3\n", ["a.csv:3", "expected 2 fields (q, a), found 3"]),
    "CSV with too few fields": ("a.csv", b"q,a\n1\n", ["a.csv:2", "expected 2 fields", "found 1"]),
    "CSV with an open quote": ("a.csv", b'q,a\n1,"2\n', ["a.csv:", "not valid CSV"]),
    "CSV with a column twice": ("a.csv", b"q,q\n1,2\n", ["a.csv:1", "'q' stands twice"]),
    "CSV without a header": ("a.csv", b"\n\n", ["a.csv:1", "header"]),
    "CSV that is not UTF-8": ("a.csv", b"q,a\n1,\xff\n", ["a.csv:2", "not UTF-8"]),
    "Parquet that is none": ("a.parquet", b"PAR1 no", ["a.parquet", "not a readable Parquet file"]),
    "another suffix": ("a.xml", b"<a/>", ["a.xml", "expected a file with one of .json, .jsonl", "found .xml"]),
    "nested too deep": ("a.jsonl", b"[" * 100_000, ["a.jsonl:1", "not valid JSON (nested too deep"]),
    "nested too deep in an array": (
        "a.json",
        b'[{"a": 1},\n{"a": ' + b"[" * 100_000,
        ["a.json:2", "nested too deep, column 1)"],
    ),
    "more than the array": ("a.json", b'[\n{"a": 1}]\n[]', ["a.json:3", "Extra data", "column 1"]),
    "a trailing comma": ("a.json", b'[{"a": 1},\n]', ["a.json:2", "not valid JSON", "column 1"]),
    "a quote that does not close": ("a.json", b'[{"a": "1}]', ["a.json:1", "Unterminated string"]),
    "a number of thousands of digits": ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", ["a.json:1", "4300"]),
}


@pytest.mark.parametrize(("name", "content", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("layout", ["[%s]", " [ %s ] ", "%s"])
@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_values_are_read_whole_wherever_a_piece_of_the_file_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, piece: int, encoding: str
) -> None:
    monkeypatch.setattr(json_stream, "PIECE_BYTES", piece)
    rows = [{"a": 'é"\u2028😀\n', "b": [1.5e-3, True, None, -12345]}, {"a": "y" * 300, "b": {}}, {"a": "", "b": [[]]}]
    path = tmp_path / "a.json"
    between = ",\n" if "[" in layout else "\n"
    path.write_bytes((layout % between.join(json.dumps(row, indent=1) for row in rows)).encode(encoding))
    found = [value for value, _ in json_stream.stream_values(path, in_array="[" in layout)]
    assert found == rows


def test_a_time_that_python_cannot_hold_is_named_with_its_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"question": ["a"], "at": pa.array([2**60], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.zst"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(content=st.binary(max_size=60) | st.text(st.sampled_from('[{}],:"\\n\0a1 \r\n'), max_size=40).map(str.encode))
def test_any_bytes_give_rows_or_a_data_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    rows: list[Row] = []
    with contextlib.suppress(DataError):
        rows.extend(read_rows(path))
    assert all(isinstance(row.values, dict) for row in rows)


def test_a_folder_is_read_file_by_file_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    write_lines(folder / "a.jsonl", questions(2))
    write_lines(folder / "more" / "b.jsonl", questions(3))
    write_lines(folder / ".hidden.jsonl", questions(4))
    (folder / "README.md").write_text("no data")
    source = open_source(DatasetPreset(path=str(folder)), tmp_path)
    rows = list(source.rows())
    assert len(rows) == 5
    assert rows[-1].done == source.size
    assert rows[-1].place == f"{folder / 'more' / 'b.jsonl'}:3"


NOWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"path": "/no/such/file.jsonl"}, "no file or folder /no/such/file.jsonl"),
    "no such builtin": ({"builtin": "poems"}, "no built-in data set 'poems'; there are orders"),
    "nothing named": ({"name": "x"}, "'x' has no source"),
}


@pytest.mark.parametrize(("preset", "words"), NOWHERE.values(), ids=NOWHERE)
def test_a_source_that_is_not_there_is_named(tmp_path: Path, preset: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source(DatasetPreset(**preset), tmp_path)


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no data file .*found notes\.txt"):
        open_source(DatasetPreset(path=str(tmp_path)), tmp_path)


def test_a_hub_data_set_that_cannot_be_loaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hub data set nobody/nothing .*cannot be loaded.*or give a local file"):
        open_source(DatasetPreset(hub="nobody/nothing"), tmp_path)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import HfApi
    from requests.exceptions import ConnectTimeout

    asked: list[object] = []

    def silent(api: HfApi, *arguments: object, **options: object) -> None:
        asked.append(options["timeout"])
        raise ConnectTimeout("nobody")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", silent)
    with pytest.raises(DataError, match=r"Couldn't reach 'nobody/nothing'.*or give a local file"):
        open_source(DatasetPreset(hub="nobody/nothing"), tmp_path)
    assert asked == [10.0]
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    server.stop()


def test_data_in_s3_is_read_and_read_anew_when_an_object_changes(tmp_path: Path, bucket: Any) -> None:
    one, two = (b'{"question": "a", "answer": "%d"}\n' % n for n in (1, 2))
    bucket.put_object(Bucket="data", Key="set/a.jsonl", Body=one)
    bucket.put_object(Bucket="data", Key="set/b.jsonl", Body=one)
    whole = open_source(DatasetPreset(s3="s3://data/set"), tmp_path)
    assert [row.values["answer"] for row in whole.rows()] == ["1", "1"]
    single = open_source(DatasetPreset(s3="s3://data/set/a.jsonl"), tmp_path)
    assert len(list(single.rows())) == 1
    bucket.put_object(Bucket="data", Key="set/b.jsonl", Body=two)
    changed = open_source(DatasetPreset(s3="s3://data/set"), tmp_path)
    assert [row.values["answer"] for row in changed.rows()] == ["1", "2"]
    assert changed.fingerprint != whole.fingerprint


def test_orders_are_always_the_same_and_hold_out_people_and_cities_of_their_own() -> None:
    rows = list(orders.generate_orders())
    assert rows == list(orders.generate_orders())
    sides: dict[str, set[str]] = {"train": set(), "validation": set()}
    for row in rows:
        order = json.loads(row["completion"])
        assert order["customer"] in row["prompt"]
        assert order["city"] in row["prompt"]
        sides[row["split"]] |= {order["customer"], order["city"]}
    assert not sides["train"] & sides["validation"]
    assert sum(row["split"] == "train" for row in rows) >= 1200


def test_each_data_file_has_the_digest_that_sha256sum_shows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    for name in ("a.jsonl", "more/b.jsonl"):
        write_lines(folder / name, [{"question": name, "answer": "1"}])
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.jsonl", "more/b.jsonl")}
    found = open_source(DatasetPreset(path=str(folder)), tmp_path)
    assert found.files == tuple(f"{digest}  {name}" for name, digest in digests.items())
    one = open_source(DatasetPreset(path=str(folder / "a.jsonl")), tmp_path)
    assert one.files == (f"{digests['a.jsonl']}  a.jsonl",)
    assert open_source(DatasetPreset(builtin="orders"), tmp_path).files == ()
