"""Data as people reported it: what is learned of it, decoded, through the whole stage. One test for each kind of report."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from steps.errors import DataError
from steps.prepare.stage import prepare
from steps.protocol.prepared import MANIFEST, PreparedRows
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.rundir import RunDir
from tests.prepare.prepare_data import PlanMaker, base_at, write_lines, write_tokenizer

Maker = Callable[..., PreparedData]
HEAD = "<|im_start|>system\nBe helpful.<|im_end|>\n"


@pytest.fixture
def make(base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path) -> Maker:
    def made(data: Path, *, model: BaseModel = base, **options: Any) -> PreparedData:
        return prepare(make_plan(data, **{"packing": "off", **options}), model, run, cache=tmp_path)

    return made


def texts(record: PreparedData, *, validation: bool = True) -> list[str]:
    """Each sample with what is learned in double brackets, those of the training first. All models here have one vocabulary."""
    found = PreparedRows.open(Path(record.path))
    decoder = Tokenizer.from_file(str(TOKENIZER[0]))
    rows = [found.rows.row(index) for index in range(len(found.rows))]
    rows += [found.validation.row(index) for index in range(len(found.validation))] if validation else []
    return [_marked(decoder, row.input_ids.tolist(), (row.labels >= 0).tolist()) for row in rows]


TOKENIZER: list[Path] = []


@pytest.fixture(autouse=True)
def decoder(tiny_model: Path) -> None:
    TOKENIZER[:] = [tiny_model / "tokenizer.json"]


def _marked(decoder: Tokenizer, ids: list[int], learned: list[bool]) -> str:
    parts, begin = [], 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or learned[at] != learned[begin]:
            text = decoder.decode(ids[begin:at], skip_special_tokens=False)
            parts.append(f"⟦{text}⟧" if learned[begin] else text)
            begin = at
    return "".join(parts)


def turn(asked: str, answer: str, head: str = HEAD) -> str:
    return f"{head}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧\n"


def system(text: str) -> str:
    return f"<|im_start|>system\n{text}<|im_end|>\n"


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


U, A = "user", "assistant"
READ: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "optional columns that the first row lacks": (
        [
            {"instruction": "Hi", "output": "Ho"},
            {"instruction": "Add", "input": "1 2", "system": "Calm.", "output": "3"},
        ],
        [turn("Hi", "Ho"), turn("Add\n\n1 2", "3", system("Calm."))],
    ),
    "a system column that the first row lacks": (
        [chat((U, "a"), (A, "b")), {"system": "Arr.", **chat((U, "c"), (A, "d"))}],
        [turn("a", "b"), turn("c", "d", system("Arr."))],
    ),
    "numbers, lists and objects for an input": (
        [
            {"instruction": "n", "input": 0, "output": 0},
            {"instruction": "l", "input": ["a", 1], "output": [2]},
            {"instruction": "o", "input": {"k": None}, "output": True},
        ],
        [turn("n\n\n0", "0"), turn('l\n\n["a", 1]', "[2]"), turn('o\n\n{"k": null}', "true")],
    ),
    "NaN and null for what is missing": (
        [
            {"instruction": "a", "input": float("nan"), "output": "b"},
            {"instruction": "c", "input": None, "output": "d"},
        ],
        [turn("a", "b"), turn("c", "d")],
    ),
    "history as earlier turns": (
        [
            {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]},
            {"instruction": "e", "input": "", "output": "f", "history": []},
        ],
        [turn("a", "b") + turn("c", "d", ""), turn("e", "f")],
    ),
    "prompt and response": ([{"prompt": n, "response": n * 2} for n in "ab"], [turn(n, n * 2) for n in "ab"]),
    "input and output": ([{"input": n, "output": n * 2} for n in "ab"], [turn(n, n * 2) for n in "ab"]),
    "bare texts": ([{"text": "the fox"}, {"text": "12 34"}], ["⟦the fox<|im_end|>⟧", "⟦12 34<|im_end|>⟧"]),
    "a list for a prompt, text for a completion": (
        [{"prompt": [{"role": U, "content": n}], "completion": n * 2} for n in "ab"],
        [turn(n, n * 2) for n in "ab"],
    ),
    "rows of two shapes": (
        [{"question": "a", "answer": "b"}, {"instruction": "c", "output": "d"}],
        [turn("a", "b"), turn("c", "d")],
    ),
    "upper case": ([{"Question": n, "ANSWER": n * 2} for n in "ab"], [turn(n, n * 2) for n in "ab"]),
    "content in parts": (
        [
            chat((U, [{"type": "text", key: n}]), (A, [{"type": "text", key: "x"}]))
            for key, n in (("text", "a"), ("value", "b"))
        ],  # type: ignore[arg-type]
        [turn(n, "x") for n in "ab"],
    ),
    "messages as JSON text": (
        [{"messages": json.dumps(chat((U, n), (A, "x"))["messages"])} for n in "ab"],
        [turn(n, "x") for n in "ab"],
    ),
}


@pytest.mark.parametrize(("rows", "expected"), READ.values(), ids=READ)
def test_rows_are_read_as_they_were_meant(
    make: Maker, tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]
) -> None:
    assert sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows)))) == sorted(expected)


@pytest.mark.parametrize(
    "off", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_weight": 0.0}, {"loss": False}, {"weight": "0"}]
)
def test_an_answer_of_weight_0_is_read_and_not_learned(make: Maker, tmp_path: Path, off: dict[str, Any]) -> None:
    rows = [chat((U, n), (A, "bad"), (U, "sure?"), (A, "good")) for n in "ab"]
    for row in rows:
        row["messages"][1] |= off
    before = f"{HEAD}<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\nbad<|im_end|>\n"
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert sorted(texts(record)) == [before.format(n) + turn("sure?", "good", "") for n in "ab"]


TOOLS = (
    "{% if tools %}<|im_start|>{{ tools | tojson }}<|im_end|>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAREGPT = [
    {
        "tools": '[{"name": "weather", "parameters": {"type": "object"}}]',
        "conversations": [
            {"from": "human", "value": f"rain in {n}?"},
            {"from": "function_call", "value": f'{{"name": "weather", "arguments": {{"town": "{n}"}}}}'},
            {"from": "observation", "value": '{"rain": true}'},
            {"from": "gpt", "value": "It rains."},
        ],
    }
    for n in "ab"
]
OPENAI = [
    {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "messages": [
            {"role": U, "content": f"rain in {n}?"},
            {
                "role": A,
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": f'{{"town": "{n}"}}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": '{"rain": true}'},
            {"role": A, "content": "It rains."},
        ],
    }
    for n in "ab"
]
LEGACY = [
    {
        **row,
        "messages": [
            row["messages"][0],
            {"role": A, "content": "", "function_call": {"name": "weather", "arguments": f'{{"town": "{n}"}}'}},
            {"role": "function", "name": "weather", "content": '{"rain": true}'},
            row["messages"][3],
        ],
    }
    for n, row in zip("ab", OPENAI, strict=True)
]


@pytest.mark.parametrize("rows", [SHAREGPT, OPENAI, LEGACY], ids=["sharegpt", "OpenAI", "OpenAI's older way"])
def test_calls_are_learned_and_results_are_not(make: Maker, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    model = base_at(write_tokenizer(tmp_path / "model", template=TOOLS))
    found = sorted(texts(make(write_lines(tmp_path / "a.jsonl", rows), model=model)))
    listed = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
    assert found == [
        f"<|im_start|>{listed}<|im_end|><|im_start|>user\nrain in {n}?<|im_end|>\n<|im_start|>assistant\n"
        f'⟦CALL weather {{"town": "{n}"}}<|im_end|>⟧\n<|im_start|>tool\n{{"rain": true}}<|im_end|>\n'
        "<|im_start|>assistant\n⟦It rains.<|im_end|>⟧\n"
        for n in "ab"
    ]


def test_a_call_at_the_end_is_what_evaluation_expects(make: Maker, tmp_path: Path) -> None:
    model = base_at(write_tokenizer(tmp_path / "model", template=TOOLS))
    rows = [{**row, "messages": row["messages"][:2]} for row in OPENAI]
    record = make(write_lines(tmp_path / "a.jsonl", rows), model=model)
    [sample] = PreparedRows.open(Path(record.path)).held_out()
    assert sample.reference.startswith('CALL weather {"town"')
    assert sample.prompt.endswith("<|im_start|>assistant\n")


def test_what_the_template_leaves_out_is_counted(make: Maker, tmp_path: Path) -> None:
    rows = [chat((U, n), (A, "x")) for n in "abc"]
    for row in rows[:2]:
        row["messages"][1]["reasoning_content"] = "since it is so"
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert record.notes == ["in 2 samples the chat template leaves out the reasoning"]


def test_columns_that_are_not_used_are_named_in_one_line(make: Maker, tmp_path: Path) -> None:
    rows = [{"question": n, "answer": "x", "category": 1, **({"id": 2} if n == "b" else {})} for n in "ab"]
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert record.notes == ["columns that are not used: category, id"]


def spreadsheet(separator: str, *, before: str = "", index: bool = False) -> str:
    head, rows = ["question", "answer"], [[f"q{n}{separator}x", f'say "{n}",\ntwo – ä'] for n in range(3)]
    cells = [(["", *head] if index else head), *([f"{n}", *row] if index else row for n, row in enumerate(rows))]
    quoted = ('"' + cell.replace('"', '""') + '"' for line in cells for cell in line)
    width = len(cells[0])
    fields = list(quoted)
    lines = [separator.join(fields[at : at + width]) for at in range(0, len(fields), width)]
    return before + "\r\n".join([*lines, separator * (width - 1), ""]) + "\r\n"


SHEETS = {
    "comma": (",", spreadsheet(",").encode()),
    "semicolon with a byte order mark": (";", spreadsheet(";").encode("utf-8-sig")),
    "a sep= line": (";", spreadsheet(";", before="sep=;\r\n").encode("utf-8-sig")),
    "UTF-16 with tabs": ("\t", spreadsheet("\t").encode("utf-16")),
    "an index column": (",", spreadsheet(",", index=True).encode()),
    "gzip": (",", gzip.compress(spreadsheet(",").encode())),
}


@pytest.mark.parametrize(("separator", "content"), SHEETS.values(), ids=SHEETS)
def test_a_spreadsheets_table_is_read(make: Maker, tmp_path: Path, separator: str, content: bytes) -> None:
    path = tmp_path / ("a.csv.gz" if content[:2] == b"\x1f\x8b" else "a.csv")
    path.write_bytes(content)
    expected = [turn(f"q{n}{separator}x", f'say "{n}",\ntwo – ä') for n in range(3)]
    assert sorted(texts(make(path))) == expected


def test_quotes_with_backslashes_are_read_where_nothing_else_can_be_meant(make: Maker, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "".join(f'"Say \\"{n}\\", now","{n}"\n' for n in "ab"))
    assert sorted(texts(make(path))) == [turn(f'Say "{n}", now', n) for n in "ab"]


JSONS = {
    "an array over several lines in .jsonl": json.dumps([{"question": n, "answer": "x"} for n in "ab"], indent=1),
    "objects over several lines": "\n".join(json.dumps({"question": n, "answer": "x"}, indent=1) for n in "ab"),
    "NaN in an array": '[{"question": "a", "answer": "x", "n": NaN},\n{"question": "b", "answer": "x"}]',
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("content", JSONS.values(), ids=JSONS)
def test_json_is_read_however_it_is_laid_out(make: Maker, tmp_path: Path, content: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(content)
    assert sorted(texts(make(path))) == [turn(n, "x") for n in "ab"]


def test_nested_parquet_with_nulls_for_absent_fields(make: Maker, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = base_at(write_tokenizer(tmp_path / "model", template=TOOLS))
    plain = [{**chat((U, n), (A, "x")), "tools": None} for n in "cd"]
    pq.write_table(pa.Table.from_pylist([*OPENAI, *plain]), tmp_path / "a.parquet")
    found = texts(make(tmp_path / "a.parquet", model=model))
    assert sum("⟦CALL weather" in text for text in found) == 2
    assert sum("⟦x<|im_end|>⟧" in text and "CALL" not in text for text in found) == 2


def test_zstandard_is_read(make: Maker, tmp_path: Path) -> None:
    import pyarrow as pa

    packed = pa.compress(b'{"question": "a", "answer": "x"}\n{"question": "b", "answer": "x"}\n', "zstd", asbytes=True)
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert sorted(texts(make(tmp_path / "a.jsonl.zst"))) == [turn(n, "x") for n in "ab"]


@pytest.mark.parametrize(("name", "words"), [("a.jsonl.gz", "gzip"), ("a.jsonl.zst", "zstd")])
def test_a_packed_file_that_breaks_off_is_named(make: Maker, tmp_path: Path, name: str, words: str) -> None:
    buffer = io.BytesIO(gzip.compress(b'{"question": "a", "answer": "x"}\n' * 99))
    (tmp_path / name).write_bytes(buffer.getvalue()[:40])
    with pytest.raises(DataError, match=rf"{name}: not a whole {words} file"):
        make(tmp_path / name)


def folder_of(path: Path, files: dict[str, str]) -> Path:
    for name, letters in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(path / name, [{"question": f"{name} {n}", "answer": "x"} for n in letters])
    return path


SPLIT = {
    "train and test": ({"train.jsonl": "abc", "test.jsonl": "de"}, "test.jsonl"),
    "a cloned hub data set": (
        {
            "data/train-00000-of-00002.jsonl": "ab",
            "data/train-00001-of-00002.jsonl": "c",
            "data/validation-0.jsonl": "de",
        },
        "data/validation-0.jsonl",
    ),
    "folders": ({"train/a.jsonl": "abc", "dev/a.jsonl": "de"}, "dev/a.jsonl"),
    "names that end so": ({"gsm8k_train.jsonl": "abc", "gsm8k_eval.jsonl": "de"}, "gsm8k_eval.jsonl"),
    "a file without a word": ({"a.jsonl": "abc", "test-a.jsonl": "de"}, "test-a.jsonl"),
}


@pytest.mark.parametrize(("files", "held_out"), SPLIT.values(), ids=SPLIT)
def test_test_files_are_held_out_and_never_trained_on(
    make: Maker, tmp_path: Path, files: dict[str, str], held_out: str
) -> None:
    record = make(folder_of(tmp_path / "data", files))
    assert (record.train_samples, record.validation_samples) == (3, 2)
    assert not any(held_out in text for text in texts(record, validation=False))
    assert record.notes == [f"held out, never trained on: {held_out}"]


def test_words_within_a_name_mean_nothing(make: Maker, tmp_path: Path) -> None:
    record = make(folder_of(tmp_path / "data", {"testimonials.jsonl": "abcd", "my-test-answers.jsonl": "efgh"}))
    assert record.notes == []
    assert record.train_samples > 4


def test_files_that_are_not_read_are_named(make: Maker, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", {"a.jsonl": "abc"})
    for name in ("table.xlsx", "notes.txt", "README.md", ".hidden.csv", "dataset_infos.json"):
        (folder / name).write_text("{}")
    assert make(folder).notes == ["files that are not read: notes.txt, table.xlsx"]


def test_only_test_files_are_nothing_to_train_on(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only files to test with \(test\.jsonl\)"):
        make(folder_of(tmp_path / "data", {"test.jsonl": "abc"}))


def test_a_question_of_the_test_file_is_left_out_of_training(make: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", [{"question": n, "answer": "x"} for n in "abc"])
    write_lines(folder / "test.jsonl", [{"question": n, "answer": "y"} for n in "cd"])
    record = make(folder)
    assert (record.train_samples, record.validation_samples) == (2, 2)
    assert "1 training sample left out, with a question that is held out" in record.notes


def test_max_rows_draws_by_the_seed(make: Maker, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": f"q{n}", "answer": "x"} for n in range(60)])
    drawn = {seed: sorted(texts(make(path, max_rows=10, seed=seed))) for seed in (1, 2)}
    assert drawn[1] == sorted(texts(make(path, max_rows=10, seed=1)))
    assert len(drawn[1]) == len(drawn[2]) == 10
    assert drawn[1] != drawn[2]
    assert any(f"q{n}<" in text for n in range(30, 60) for text in drawn[1])


def test_template_and_arguments_are_part_of_the_identity_and_kept(make: Maker, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": n, "answer": "x"} for n in "ab"])
    own = (
        "{% for m in messages %}[{{ name }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[{{ name }}]{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(own)
    first = make(path)
    options = {"chat_template": str(tmp_path / "own.jinja"), "chat_template_kwargs": '{"name": "Ada"}'}
    record = make(path, **options)
    assert record.identity != first.identity
    assert sorted(texts(record)) == [f"[Ada]{n}<|im_end|>[Ada]⟦x<|im_end|>⟧" for n in "ab"]
    kept = json.loads((Path(record.path) / MANIFEST).read_text())
    assert (kept["chat_template"], kept["chat_template_kwargs"]) == (own, {"name": "Ada"})


def test_many_columns_and_one_long_row(make: Maker, tmp_path: Path) -> None:
    wide = {f"c{n}": n for n in range(2000)}
    rows = [
        {"question": "a", "answer": "x", **wide},
        {"question": "b" * 300_000, "answer": "y"},
        {"question": "c", "answer": "z"},
    ]
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    assert (record.train_samples, record.validation_samples, record.too_long, record.skipped) == (1, 1, 1, 1)
    assert record.notes[0].endswith("and 1,980 more")


def test_a_greeting_before_the_first_question_can_be_held_out(make: Maker, tmp_path: Path) -> None:
    rows = [chat((A, f"Welcome {n}"), (U, "hi"), (A, "x")) for n in "ab"]
    for row in rows:
        row["messages"][2]["weight"] = 0
    record = make(write_lines(tmp_path / "a.jsonl", rows))
    [sample] = PreparedRows.open(Path(record.path)).held_out()
    assert sample.prompt == f"{HEAD}<|im_start|>assistant\n"
    assert sample.reference.startswith("Welcome")
