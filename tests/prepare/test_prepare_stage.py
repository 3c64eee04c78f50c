from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from steps.errors import DataError
from steps.prepare import collect
from steps.prepare.share import enough
from steps.prepare.stage import prepare
from steps.protocol import prepared
from steps.protocol.prepared import PreparedRows
from steps.protocol.records import BaseModel, PreparedData
from steps.protocol.rundir import RunDir
from steps.settings.config import parse_settings
from tests.prepare.prepare_data import PlanMaker, base_at, questions, write_lines, write_tokenizer


def opened(record: PreparedData) -> PreparedRows:
    prepared.verify(Path(record.path))
    return PreparedRows.open(Path(record.path))


def references(record: PreparedData) -> list[str]:
    return [sample.reference for sample in opened(record).held_out()]


@pytest.mark.parametrize("packing", ["on", "off"])
def test_rows_hold_every_training_sample_once_with_loss_on_the_answers_alone(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, question_file: Path, tmp_path: Path, packing: str
) -> None:
    record = prepare(make_plan(question_file, packing=packing), base, run, cache=tmp_path)
    found = opened(record)
    decoder = Tokenizer.from_file(f"{base.path}/tokenizer.json")
    answers, tokens, targets = [], 0, 0
    for index in range(len(found)):
        row = found.row(index)
        assert row.lengths.sum() == len(row.input_ids) == len(row.labels) <= 256
        assert packing == "on" or len(row.lengths) == 1
        tokens, targets = tokens + len(row.input_ids), targets + int((row.labels >= 0).sum())
        begin = 0
        for length in row.lengths.tolist():
            learned = [token for token in row.labels[begin : begin + length].tolist() if token >= 0]
            answers.append(decoder.decode(learned, skip_special_tokens=False))
            begin += length
    expected = {row["answer"] + "<|im_end|>" for row in questions(60)}
    assert sorted(answers) == sorted(expected - {f"{text}<|im_end|>" for text in references(record)})
    assert (record.rows, record.tokens, record.target_tokens) == (len(found), tokens, targets)
    assert record.train_samples + record.validation_samples == 60
    assert record.fill == pytest.approx(tokens / (len(found) * 256), abs=1e-4)


def test_held_out_samples_and_validation_rows_stand_in_the_same_order(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, question_file: Path, tmp_path: Path
) -> None:
    found = opened(prepare(make_plan(question_file), base, run, cache=tmp_path))
    samples = list(found.held_out())
    assert len(samples) == len(found.validation) == found.record.validation_samples > 0
    for index, sample in enumerate(samples):
        ids = found.validation.row(index).input_ids.tolist()
        assert tuple(ids[: len(sample.prompt_ids)]) == sample.prompt_ids
        assert sample.messages[-1] == {"role": "assistant", "content": sample.reference}
        assert sample.prompt.endswith("<|im_start|>assistant\n")


def test_rows_in_another_order_give_the_same_held_out_samples_and_duplicates_count_once(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path
) -> None:
    rows = questions(60)
    first = prepare(make_plan(write_lines(tmp_path / "a.jsonl", rows)), base, run, cache=tmp_path)
    mixed = [*rows, *rows[:20]]
    random.Random(1).shuffle(mixed)
    second = prepare(make_plan(write_lines(tmp_path / "b.jsonl", mixed)), base, run, cache=tmp_path)
    assert references(first) == references(second)
    assert (first.duplicates, second.duplicates) == (0, 20)
    assert first.train_samples == second.train_samples


def test_the_order_is_as_long_as_the_run_and_depends_on_seed_and_steps_alone(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, question_file: Path, tmp_path: Path
) -> None:
    def order(**options: Any) -> list[int]:
        found = opened(prepare(make_plan(question_file, packing="off", **options), base, run, cache=tmp_path))
        assert len(found.order) == found.record.steps * found.record.global_batch
        return [int(row) for row in found.order]

    short, long = order(max_steps=5), order(max_steps=40)
    assert long[: len(short)] == short
    assert len(order(epochs=2.0, global_batch=8)) % 8 == 0
    assert order(max_steps=5, seed=7) != short


def test_what_is_prepared_is_reused_and_anything_that_changes_rows_makes_another(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, question_file: Path, tmp_path: Path
) -> None:
    first = prepare(make_plan(question_file), base, run, cache=tmp_path)
    written = (Path(first.path) / prepared.ROWS).stat().st_mtime_ns
    assert prepare(make_plan(question_file), base, run, cache=tmp_path) == first
    assert prepare(make_plan(question_file, learning_rate=0.5, processes=2), base, run, cache=tmp_path) == first
    assert (Path(first.path) / prepared.ROWS).stat().st_mtime_ns == written
    others = (
        {"sequence_length": 128},
        {"packing": "off"},
        {"seed": 1},
        {"validation_fraction": 0.2},
        {"max_rows": 30},
        {"max_steps": 3},
        {"global_batch": 8},
        {"preset": {"system": "Be brief."}},
    )
    identities = {prepare(make_plan(question_file, **other), base, run, cache=tmp_path).identity for other in others}
    assert len(identities | {first.identity}) == len(others) + 1


def test_two_preparations_give_equal_bytes(
    base: BaseModel, tmp_path: Path, make_plan: PlanMaker, question_file: Path
) -> None:
    one, two = (prepare(make_plan(question_file), base, RunDir(tmp_path / n), cache=tmp_path) for n in ("1", "2"))
    assert one.digest == two.digest


@pytest.mark.parametrize("name", [*prepared.DATA_FILES, prepared.MANIFEST])
def test_damaged_data_is_set_aside_with_a_sentence_and_made_again(
    base: BaseModel,
    run: RunDir,
    make_plan: PlanMaker,
    question_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    first = prepare(make_plan(question_file), base, run, cache=tmp_path)
    content = bytearray((Path(first.path) / name).read_bytes())
    content[len(content) // 2] ^= 255
    (Path(first.path) / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = prepare(make_plan(question_file), base, run, cache=tmp_path)
    assert again == first
    assert prepared.verify(Path(again.path)) == first
    assert Path(f"{first.path}.damaged", name).read_bytes() == bytes(content)
    assert name in caplog.text
    assert "set aside" in caplog.text


def test_long_samples_are_cut_at_the_end_and_counted(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*questions(20), {"question": "short", "answer": "long " * 200}, {"question": "long " * 300, "answer": "x"}]
    with caplog.at_level(logging.INFO):
        record = prepare(
            make_plan(write_lines(tmp_path / "a.jsonl", rows), sequence_length=128), base, run, cache=tmp_path
        )
    assert record.truncated_samples == 1
    assert record.truncated_tokens > 200
    assert record.skipped == 1
    assert "cut from their ends" in caplog.text
    assert "no token of an answer within the sequence length" in caplog.text
    assert "a.jsonl:22" in caplog.text


def test_rows_that_cannot_be_used_are_counted_by_reason_and_named(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = questions(20)
    rows[4]["answer"] = rows[9]["answer"] = " "
    record = prepare(make_plan(write_lines(tmp_path / "a.jsonl", rows)), base, run, cache=tmp_path)
    assert record.skipped == 2
    assert "2 with no answer" in caplog.text
    assert "a.jsonl:5" in caplog.text
    manifest = json.loads((Path(record.path) / prepared.MANIFEST).read_text())
    assert manifest["skipped"] == {"no answer": 2}


@pytest.mark.parametrize("was_prepared", [False, True], ids=["anew", "after a run that skipped them"])
def test_rows_that_cannot_be_used_are_refused_where_the_config_says_so(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path, was_prepared: bool
) -> None:
    rows = questions(20)
    rows[4]["answer"] = rows[9]["answer"] = " "
    plan = make_plan(write_lines(tmp_path / "a.jsonl", rows))
    before = [Path(prepare(plan, base, run, cache=tmp_path).path)] if was_prepared else []
    strict = plan.model_copy(update={"settings": parse_settings({"prepare": {"unusable_rows": "refuse"}})})
    with pytest.raises(DataError) as caught:
        prepare(strict, base, run, cache=tmp_path)
    for words in (
        "a.jsonl: 2 rows cannot be used: 2 with no answer",
        "a.jsonl:5",
        "a.jsonl:10",
        "prepare.unusable_rows",
    ):
        assert words in str(caught.value)
    assert [path for path in run.path.glob("*") if path.is_dir()] == before
    good = strict.model_copy(update={"dataset": make_plan(write_lines(tmp_path / "b.jsonl", questions(20))).dataset})
    assert prepare(good, base, run, cache=tmp_path).samples == 20


UNUSABLE: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = {
    "one row": (questions(1), {}, ["1 distinct sample", "at least 2"]),
    "all the same": (questions(1) * 9, {}, ["1 distinct sample", "duplicates count once"]),
    "no answer anywhere": (
        [{"question": "a", "answer": ""}] * 3,
        {},
        ["no usable conversation", "3 with no answer", "a.jsonl:1"],
    ),
    "unknown columns": ([{"poem": "a"}], {}, ["a.jsonl:1", "found poem", "messages (messages)"]),
    "all too long": (
        questions(5),
        {"sequence_length": 8},
        ["longer than the sequence", "sequence_length=8", "the shortest needs"],
    ),
}


@pytest.mark.parametrize(("rows", "options", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_holds_nothing_to_learn_from_is_refused(
    base: BaseModel,
    run: RunDir,
    make_plan: PlanMaker,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    words: list[str],
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(make_plan(write_lines(tmp_path / "a.jsonl", rows), **options), base, run, cache=tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(run.path.iterdir())


def test_the_sequence_length_that_is_named_is_the_least_that_works(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}, {"question": "c", "answer": "c"}])
    with pytest.raises(DataError, match="the shortest needs") as caught:
        prepare(make_plan(path, sequence_length=8), base, run, cache=tmp_path)
    needed = int(str(caught.value).rsplit("--sequence-length ", 1)[1].split()[0])
    assert prepare(make_plan(path, sequence_length=needed), base, run, cache=tmp_path).samples == 2
    with pytest.raises(DataError):
        prepare(make_plan(path, sequence_length=needed - 1), base, run, cache=tmp_path)


@pytest.mark.parametrize(("fraction", "held"), [(0.0001, 1), (0.9999, 4)])
def test_each_side_gets_at_least_one_sample(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path, fraction: float, held: int
) -> None:
    path = write_lines(tmp_path / "a.jsonl", questions(5))
    record = prepare(make_plan(path, validation_fraction=fraction), base, run, cache=tmp_path)
    assert record.validation_samples == held == len(references(record))
    assert record.train_samples == 5 - held


@pytest.mark.parametrize(("rows", "repeated"), [(9, 0), (40, 30), (700, 0), (700, 690)])
def test_as_many_samples_are_held_out_as_are_enough_and_each_has_its_text(
    base: BaseModel,
    run: RunDir,
    make_plan: PlanMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    repeated: int,
) -> None:
    monkeypatch.setattr(collect, "CHUNK_ROWS", 8)
    path = write_lines(tmp_path / "a.jsonl", [*questions(rows), *questions(repeated)])
    record = prepare(make_plan(path), base, run, cache=tmp_path)
    assert record.duplicates == repeated
    assert len(references(record)) == record.validation_samples == enough(rows)


def test_the_built_in_orders_keep_their_own_split(
    base: BaseModel, run: RunDir, make_plan: PlanMaker, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    record = prepare(make_plan("orders"), base, run, cache=tmp_path, progress=lambda *state: seen.append(state))
    assert (record.validation_samples, record.score, record.shape) == (120, "json_fields", "prompt_completion")
    assert seen[0][0] == "reading and tokenising, rows"
    assert seen[-1][1] == seen[-1][2]


def test_a_template_without_system_turns_skips_those_conversations(
    run: RunDir, make_plan: PlanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    base = base_at(write_tokenizer(tmp_path / "model", template=template))
    rows: list[dict[str, Any]] = [*questions(10), {"question": "a", "answer": "b", "system": "Be."}]
    rows = [{"system": "", **row} for row in rows]
    record = prepare(make_plan(write_lines(tmp_path / "a.jsonl", rows)), base, run, cache=tmp_path)
    assert record.skipped == 1
    assert "System role not supported" in caplog.text


def peak_mib(rows: int, base: BaseModel, folder: Path) -> float:
    path = folder / f"{rows}.jsonl"
    with path.open("w") as file:
        for n in range(rows):
            answer = " ".join(f"word{(n * 7 + m) % 900}" for m in range(40))
            file.write(json.dumps({"question": f"{n}: why?", "answer": answer}) + "\n")
    code = (
        "import resource; from pathlib import Path; from steps.settings import config, options, resolve\n"
        "from steps.protocol import records, rundir\n"
        "from steps.prepare.stage import prepare\n"
        f"plan = resolve.resolve(config.Settings(), options.Options(model='tiny', dataset={str(path)!r}))\n"
        f"base = records.BaseModel.from_dict({base.to_dict()!r})\n"
        f"prepare(plan, base, rundir.RunDir(Path({str(folder)!r}, 'run')), cache=Path({str(folder)!r}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_file(base: BaseModel, tmp_path: Path) -> None:
    assert peak_mib(80_000, base, tmp_path) <= 1.1 * peak_mib(8_000, base, tmp_path)


def test_the_keys_order_is_that_of_their_bytes() -> None:
    keys = np.frombuffer(bytes(range(255, -1, -1)), dtype="V16")
    assert [key.tobytes() for key in np.sort(keys)] == sorted(key.tobytes() for key in keys)


def test_writing_rows_imports_no_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace; from steps.prepare import pack, write\n"
        "reader = SimpleNamespace(read=lambda sample: (bytes(8), bytes(2)))\n"
        f"write.write_rows(Path({str(tmp_path / 'rows')!r}), pack.one_each(3), reader, row_tokens=2, progress=print)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
