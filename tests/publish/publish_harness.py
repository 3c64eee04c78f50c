"""A model as a run leaves it, in small files. As a program: publishes it, for kill tests."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.merge.stage import RECORD, digests
from steps.protocol.records import Adapter, MergedModel, digest_file, digest_of
from steps.protocol.rundir import RunDir
from steps.publish.stage import Made, publish
from steps.train.stage import ADAPTER_FILES
from tests.shared.sample_records import REPORT, plan_of

RUN = "LoraFlow/7"


def make_model(folder: Path, *, weight: bytes = b"weights", run: str = RUN, passed: bool = True) -> Made:
    """Merged model, adapter, report and lineage below `folder`, as the stages write them."""
    adapter, merged = folder / "train-1" / "adapter", folder / "merged-1"
    for place in (adapter, merged):
        write(place, {"README.md": f"# by {run}\n", "lineage.json": "{}", "tokenizer.json": "{}"})
    write(adapter, {"adapter_config.json": "{}", "adapter_model.safetensors": "lora", "training.json": str(folder)})
    write(merged, {"config.json": "{}"})
    (merged / "model-00001-of-00002.safetensors").write_bytes(weight * 1000)
    (merged / "model-00002-of-00002.safetensors").write_bytes(weight[::-1] * 1000)
    files = digests(merged)
    record = MergedModel(str(merged), "1", digest_of(files), "float32", 2, 1, 2000, 0.1)
    (merged / RECORD).write_text(json.dumps({"record": record.to_dict(), "files": files}))
    digest = digest_of({name: digest_file(adapter / name) for name in ADAPTER_FILES})
    trained = Adapter(str(adapter), "1", digest, "lora", 4, 30, 30, 3.5, 0.5, None, 1, 800)
    parents = {"merged": record.digest, "adapter": digest}
    report = replace(REPORT, gate_passed=passed, parents=parents)
    return Made(record, trained, report, {"schema": "hyperpod-lora/lineage/1", "run": run}, run)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def publish_to(folder: Path, made: Made, **settings: Any) -> Any:
    reporting = {"mlflow_uri": settings.pop("mlflow", "")}
    return publish(plan_of({"publish": settings, "reporting": reporting}), made, RunDir(folder))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    publish_to(place, make_model(place), **json.loads(sys.argv[2]))
