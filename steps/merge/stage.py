"""The merge stage: base model + adapter → `merged-<identity>/` in the run directory, whole or not at all.

The room's door. `folder` does the work; here is what surrounds it: is it there already, does it belong together, is there room,
the lineage, the digests, the rename. Called by the flow; trains and evaluates nothing.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import machine
from steps.errors import CheckpointError, StorageError
from steps.merge.ends import write_ends
from steps.merge.inputs import bytes_in, read_base
from steps.merge.outputs import merge_folders
from steps.protocol.records import Adapter, BaseModel, MergedModel, digest_file, digest_of, identity_of
from steps.protocol.rundir import (
    LINEAGE,
    RunDir,
    held_lock,
    new_directory,
    read_json,
    require_space,
    storage_errors,
    write_json,
)
from steps.protocol.set_aside import NAME, set_aside
from steps.protocol.tokenizer_files import TEMPLATE, make_usable, template_arguments
from steps.settings.options import DTYPES

if TYPE_CHECKING:
    from steps.settings.plan import Plan

logger = logging.getLogger(__name__)

RECORD = "merge.json"
"""In the merged folder: the record, and size and SHA-256 of every file of the model."""
ABOUT = frozenset({RECORD, "README.md", LINEAGE})
"""Files that tell of the run and not of the model: not in its digest, and free to change (the model card is completed later)."""
SMALL_FILES_BYTES = 64 * 1024**2
"""Room for tokenizer and configs."""
LOCK_TIMEOUT_S = 7200.0

Progress = Callable[[str, int, int], None]
"""(what, done, of); here bytes."""


def merge(
    plan: Plan,
    base: BaseModel,
    adapter: Adapter,
    run: RunDir,
    *,
    lineage: dict[str, Any],
    progress: Progress | None = None,
) -> MergedModel:
    """The merged model of this base and adapter, in `plan.merge_dtype`; made, or found whole from before.

    Raises:
        CheckpointError: the adapter is damaged, of a kind that cannot be merged, or of another base.
        ModelError: the base is damaged or quantised.
        StorageError: no room, no permission, or another process has merged the same for two hours.
    """
    _check_belongs(base, adapter)
    dtype = DTYPES.get(plan.merge_dtype, "auto")
    own = base.dtype if dtype == "auto" else plan.merge_dtype
    identity = identity_of({"base": base.digest, "adapter": adapter.digest, "dtype": own})
    final = run.merged(identity)
    lock = run.path / f".{final.name}.lock"
    with storage_errors(f"merging into {final}"), held_lock(lock, timeout_s=LOCK_TIMEOUT_S, what="the merge"):
        if found := _find_whole(final):
            return found
        _remove_leftovers(final)
        needed = bytes_in(read_base(Path(base.path)), dtype) + SMALL_FILES_BYTES
        require_space(final, needed, keep_gib=plan.settings.storage.min_free_gib, what="the merged model")
        return _make(base, adapter, final, identity, dtype=dtype, lineage=lineage, progress=progress)


def _check_belongs(base: BaseModel, adapter: Adapter) -> None:
    trained_on = adapter.parents.get("base", base.digest)
    if trained_on != base.digest:
        raise CheckpointError(
            f"the adapter in {adapter.path} was trained on the base with digest {trained_on}, "
            f"but {base.name} in {base.path} has digest {base.digest}; merge it with its own base, or train again"
        )


def _make(
    base: BaseModel,
    adapter: Adapter,
    final: Path,
    identity: str,
    *,
    dtype: str,
    lineage: dict[str, Any],
    progress: Progress | None,
) -> MergedModel:
    began = time.monotonic()
    total = bytes_in(read_base(Path(base.path)), dtype)
    with new_directory(final) as folder:
        counts = merge_folders(
            Path(base.path),
            Path(adapter.path),
            folder,
            dtype,
            done=(lambda done: progress("merge, bytes", min(done, total), total)) if progress else None,
        )
        write_json(folder / LINEAGE, lineage)
        template = Path(adapter.path) / TEMPLATE
        arguments = template_arguments(Path(adapter.path))
        make_usable(folder, template.read_text("utf-8") if template.is_file() else "", arguments)
        write_ends(folder)
        files = digests(folder)
        merged = MergedModel(
            path=str(final),
            identity=identity,
            digest=digest_of(files),
            dtype=counts.dtype,
            tensors=counts.tensors,
            merged_tensors=counts.merged_tensors,
            bytes=counts.bytes,
            seconds=round(time.monotonic() - began, 3),
            parents={"base": base.digest, "adapter": adapter.digest},
        )
        write_json(folder / RECORD, {"record": merged.to_dict(), "files": files})
    return merged


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of the model, one file per core at a time."""
    paths = sorted(path for path in folder.iterdir() if path.name not in ABOUT)
    with ThreadPoolExecutor(machine.cores(), "digest") as pool:
        digests = list(pool.map(digest_file, paths))
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(paths, digests, strict=True)
    }


def _find_whole(final: Path) -> MergedModel | None:
    """The record of an earlier merge whose files are all as they were; a damaged one is set aside."""
    if not final.exists():
        return None
    try:
        recorded = read_json(final / RECORD)
        merged = MergedModel.from_dict(recorded["record"])
        problem = difference(recorded["files"], digests(final))
    except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its record cannot be used ({error})"
    if not problem:
        return merged
    aside = set_aside(final, hidden=True)
    logger.warning("%s is damaged: %s; set aside as %s, merging again", final, problem, aside.name)
    return None


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """The first file that is not as recorded, in words; files added since do no harm. Empty: all are as recorded."""
    for name, entry in expected.items():
        if name in ABOUT:  # earlier versions recorded them
            continue
        if name not in found:
            return f"{name} is missing"
        if found[name] != entry:
            return f"{name} has changed ({entry['bytes']} bytes were written, {found[name]['bytes']} are there)"
    return ""


def _remove_leftovers(final: Path) -> None:
    """Half-written directories of merges that were killed: under the lock, none of them is alive."""
    for path in final.parent.glob(f".{final.name}.*"):
        if path.is_dir() and not NAME.search(path.name):
            shutil.rmtree(path, ignore_errors=True)
