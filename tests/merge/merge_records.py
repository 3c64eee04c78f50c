"""Records of the tiny models, as the base and train rooms would hand them on, and what the merge door is called with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.merge import stage
from steps.protocol.records import Adapter, BaseModel, MergedModel, digest_file, digest_of
from steps.protocol.rundir import RunDir
from steps.settings.config import Settings, parse_options
from steps.settings.plan import Plan
from steps.settings.resolve import resolve

LINEAGE: dict[str, Any] = {"run": "LoraFlow/7", "data": {"name": "orders", "digest": "d" * 64}}


def digest_folder(folder: Path) -> str:
    return digest_of({path.name: digest_file(path) for path in sorted(folder.iterdir())})


def base_record(folder: Path) -> BaseModel:
    return BaseModel(
        name="small",
        path=str(folder),
        source="hub:someone/small",
        revision="r1",
        digest=digest_folder(folder),
        model_type="llama",
        parameters=1,
        bytes=1,
        dtype="bf16",
    )


def adapter_record(folder: Path, base: BaseModel) -> Adapter:
    return Adapter(
        path=str(folder),
        identity="i",
        digest=digest_folder(folder),
        method="lora",
        rank=4,
        step=40,
        of=40,
        first_loss=2.0,
        last_loss=0.5,
        validation_loss=0.75,
        attempts=1,
        bytes=1,
        parents={"base": base.digest, "prepared": "p"},
    )


def plan(**options: str) -> Plan:
    """Keeps no gigabyte free: some disks of these tests are small."""
    settings = Settings.model_validate({"storage": {"min_free_gib": 0}})
    return resolve(settings, parse_options({"model": "tiny", **options}))


def merge(base: Path, adapter: Path, run: Path, progress: stage.Progress | None = None, **options: str) -> MergedModel:
    """The door, with records of these folders as they are now."""
    record = base_record(base)
    return stage.merge(
        plan(**options), record, adapter_record(adapter, record), RunDir(run), lineage=LINEAGE, progress=progress
    )
