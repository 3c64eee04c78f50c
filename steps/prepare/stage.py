"""The room's door: a data set becomes tokenised, split, packed rows and the order of the whole run.

Called by the flow's `prepare` step. Two passes: `collect` reads and tokenises in a stream into a scratch folder, then the
samples are split, packed and written by index. What was prepared before under the same identity is checked and reused.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steps.errors import StorageError
from steps.plain_text import counted
from steps.prepare.collect import Progress, Samples, collect
from steps.prepare.mix import SourcePart, mixed, of_sources, open_parts
from steps.prepare.pack import Packing, count_steps, one_each, pack, run_order
from steps.prepare.read.source import DataSource
from steps.prepare.split import Division, divide
from steps.prepare.tokenize.samples import TOO_LONG
from steps.prepare.tokenize.tokens import ChatTokenizer
from steps.prepare.write import SampleReader, write_held_out, write_rows
from steps.protocol import prepared
from steps.protocol.records import BaseModel, PreparedData, digest_of, identity_of
from steps.protocol.rundir import RunDir, new_directory, require_space, storage_errors, write_json
from steps.protocol.set_aside import set_aside
from steps.settings.plan import Plan

logger = logging.getLogger(__name__)

FORMAT = 3
"""Part of the identity: change it when other rows come out of the same input."""
ROOM_FACTOR = 6
"""Disk needed, scratch included, per byte of source: 4 bytes of id and 1 of mask per token, about 4 characters a token, twice."""


def prepare(
    plan: Plan,
    base: BaseModel,
    run: RunDir,
    *,
    cache: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> PreparedData:
    """Prepare the plan's data set for the base model, or take what is there already.

    Args:
        cache: where data from S3 or the hub is kept between runs.
        progress: called with (what, done, of) as the work goes on.

    Raises:
        DataError: the data set cannot be read, or holds nothing to learn from.
        ModelError: the base model has no usable tokenizer.
        StorageError: no room, no permission, S3 out of reach.
    """
    parts, source = open_parts(plan, cache)
    identity = identity_of(_inputs(plan, base, source))
    final = run.prepared(identity)
    if final.exists():
        found = _reuse(final)
        refuse = plan.settings.prepare.unusable_rows == "refuse"
        if found and not (refuse and found.skipped):  # made anew, it names the rows
            return found
    return _make(plan, base, (parts, source), final, progress or _silent)


def is_as_prepared(plan: Plan, base: BaseModel, record: PreparedData, *, cache: Path) -> tuple[DataSource, bool]:
    """The data as it is now, and whether `record` would come out of it again; nothing is tokenised.

    Raises:
        DataError, StorageError: as `prepare`.
    """
    _, source = open_parts(plan, cache)
    return source, identity_of(_inputs(plan, base, source)) == record.identity


def _inputs(plan: Plan, base: BaseModel, source: DataSource) -> dict[str, object]:
    """All that changes the rows or their order."""
    data = plan.dataset
    return {
        "format": FORMAT,
        "base": base.digest,
        "source": source.fingerprint,
        "read": [data.shape, data.columns, data.system, data.score, plan.max_rows],
        "template": [plan.chat_template, plan.chat_template_kwargs],
        "rows": [plan.sequence_length, plan.packing, plan.training.seed, plan.validation_fraction],
        "order": [plan.max_steps, plan.epochs, plan.training.global_batch],
    }


def _reuse(path: Path) -> PreparedData | None:
    """What is there if it is whole; a damaged directory is set aside."""
    try:
        record = prepared.verify(path)
    except StorageError as error:
        logger.warning("%s; set aside as %s and made again", error, set_aside(path).name)
        return None
    logger.info("reusing the prepared data in %s", path)
    return record


def _make(
    plan: Plan, base: BaseModel, data: tuple[Sequence[SourcePart], DataSource], final: Path, progress: Progress
) -> PreparedData:
    parts, source = data
    keep_gib = plan.settings.storage.min_free_gib
    require_space(final.parent, ROOM_FACTOR * source.bytes, keep_gib=keep_gib, what="preparing the data")
    arguments = plan.chat_template_kwargs
    tokenizer = ChatTokenizer.load(Path(base.path), template=plan.chat_template, arguments=arguments)
    with storage_errors(f"writing {final}"):
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".prepare-") as scratch:
            samples, keys = collect(parts, plan, Path(base.path), tokenizer, Path(scratch), progress=progress)
            division, notes = mixed(parts, divide(keys, samples.portions), keys, samples.portions)
            samples = replace(samples, notes=(*notes, *samples.notes))
            del keys
            rows = _pack(samples, division.train, plan)
            record = _describe(plan, base, source, samples, division, rows, final)
            record = replace(record, sources=of_sources(parts, samples.portions, division))
            with new_directory(final) as folder:
                _write(folder, record, samples, division, rows, plan, progress)
                template = {"chat_template": tokenizer.template.source, "chat_template_kwargs": arguments}
                record = _seal(folder, record, {"skipped": samples.skipped, **template})
    _report(record)
    return prepared.read_record(final)


def _pack(samples: Samples, train: npt.NDArray[np.int64], plan: Plan) -> Packing:
    """Rows of the training samples, as indices into all samples."""
    rows = pack(samples.lengths[train], plan.sequence_length) if plan.packing else one_each(len(train))
    return Packing(train[rows.members], rows.starts)


def _describe(
    plan: Plan,
    base: BaseModel,
    source: DataSource,
    samples: Samples,
    division: Division,
    rows: Packing,
    final: Path,
) -> PreparedData:
    """The record, but for the digest of files that are still to be written."""
    targets, cut = (np.fromfile(file, np.int32) for file in (samples.targets, samples.cut))
    used_cut = np.concatenate((cut[division.train], cut[division.validation]))
    tokens = int(samples.lengths[division.train].sum(dtype=np.int64))
    steps = count_steps(
        rows.rows, max_steps=plan.max_steps, epochs=plan.epochs, global_batch=plan.training.global_batch
    )
    return PreparedData(
        path=str(final),
        identity=identity_of(_inputs(plan, base, source)),
        digest="",
        fingerprint=division.fingerprint,
        source=source.name,
        shape=samples.shape,
        score=samples.score,
        samples=len(samples.lengths),
        train_samples=len(division.train),
        validation_samples=len(division.validation),
        duplicates=division.duplicates,
        skipped=sum(samples.skipped.values()),
        truncated_samples=int(np.count_nonzero(used_cut)),
        truncated_tokens=int(used_cut.sum(dtype=np.int64)),
        rows=rows.rows,
        tokens=tokens,
        target_tokens=int(targets[division.train].sum(dtype=np.int64)),
        sequence_length=plan.sequence_length,
        packed=plan.packing,
        fill=round(tokens / (rows.rows * plan.sequence_length), 4),
        steps=steps,
        global_batch=plan.training.global_batch,
        files=list(source.files),
        notes=[*source.notes, *_leaked(division), *_cut_short(cut[division.validation], plan), *samples.notes],
        too_long=samples.skipped.get(TOO_LONG, 0),
        parents={"base": base.digest},
    )


def _leaked(division: Division) -> list[str]:
    count = division.leaked
    rows = f"{count:,} training {'sample' if count == 1 else 'samples'}"
    return [f"{rows} left out, with a question that is held out"] if count else []


def _cut_short(cut: npt.NDArray[np.int32], plan: Plan) -> list[str]:
    count = int(np.count_nonzero(cut))
    longer = f"{counted(count, 'held-out sample')} longer than sequence_length={plan.sequence_length}"
    return [f"{longer}: the loss is measured up to there"] if count else []


def _write(
    folder: Path,
    record: PreparedData,
    samples: Samples,
    division: Division,
    rows: Packing,
    plan: Plan,
    progress: Progress,
) -> None:
    validation = one_each(len(division.validation))
    validation = Packing(division.validation[validation.members], validation.starts)
    reader = SampleReader(samples)
    try:
        write_rows(
            folder / prepared.ROWS,
            rows,
            reader,
            row_tokens=plan.sequence_length,
            progress=lambda done: progress("writing, rows", done, rows.rows),
        )
        write_rows(
            folder / prepared.VALIDATION,
            validation,
            reader,
            row_tokens=plan.sequence_length,
            progress=lambda done: progress("writing, held-out samples", done, validation.rows),
        )
    finally:
        reader.close()
    write_held_out(folder / prepared.HELD_OUT, samples, division.validation)
    np.save(
        folder / prepared.ORDER, run_order(rows.rows, record.steps * plan.training.global_batch, plan.training.seed)
    )


def _seal(folder: Path, record: PreparedData, notes: dict[str, object]) -> PreparedData:
    """Write the manifest with the digest of every file."""
    files = prepared.digest_files(folder)
    sealed = replace(record, digest=digest_of(files))
    write_json(folder / prepared.MANIFEST, prepared.sealed({"record": sealed.to_dict(), "files": files, **notes}))
    return sealed


def _report(record: PreparedData) -> None:
    logger.info(
        "%s: %d samples to train on in %d rows (%.1f %% filled), %d held out, %d duplicates and %d unusable rows left out",
        record.source,
        record.train_samples,
        record.rows,
        100 * record.fill,
        record.validation_samples,
        record.duplicates,
        record.skipped,
    )
    if record.truncated_samples:
        logger.warning(
            "%d of the samples %s longer than sequence_length=%d: %d tokens were cut from their ends",
            record.truncated_samples,
            "is" if record.truncated_samples == 1 else "are",
            record.sequence_length,
            record.truncated_tokens,
        )
    for note in record.notes:
        logger.info("%s", note)


def _silent(what: str, done: int, of: int) -> None:
    """No progress wanted."""
