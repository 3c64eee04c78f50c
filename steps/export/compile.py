r"""A merged model compiled for inference on Neuron cores, by optimum-neuron's own exporter. Run by a job, or by hand:

    python -m steps.export.compile MERGED OUT --batch-size 4 --sequence-length 4096 --tensor-parallel 8 \
        --instance-type trn1.32xlarge

Needs the Neuron compiler and an hour, but no Neuron device: a CPU host will do. Where there is no compiler nothing fails: the
outcome says that it was skipped, why, and which command would do it. Does not load or serve the result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from steps.errors import ConfigError, ModelError, Problem
from steps.protocol.records import Record, digest_file, digest_of
from steps.protocol.rundir import new_directory, read_json, write_json

RECORD = "compile.json"
COMPILER = ("neuronxcc", "torch_neuronx", "neuronx_distributed", "optimum.neuron")
ARCHITECTURES = ("granite", "llama", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
"""model_type values that optimum-neuron 0.4.5 exports for text generation."""
TARGETS = {"trn1": "trn1", "trn1n": "trn1", "inf2": "inf2", "trn2": "trn2"}
"""Instance family → the exporter's name."""


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """Shapes and hardware that the compiled model is fixed to."""

    batch_size: int
    """Sequences at a time; more than one turns continuous batching on."""
    sequence_length: int
    """Prompt and answer together, tokens."""
    tensor_parallel: int
    """Cores that share the model; loading needs as many."""
    instance_type: str
    """Such as trn1.32xlarge."""
    dtype: str = "bfloat16"
    """The merged model's own must be the same: the exporter takes it from there."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CompiledModel(Record):
    """What became of a request."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/compiled-model/1"

    path: str
    """Folder; empty when skipped."""
    skipped: str
    """Why nothing was compiled; empty when it was."""
    command: str
    """What did it, or would."""
    digest: str
    bytes: int
    parents: dict[str, str]
    """`merged`: digest of the merged model, where the caller knows it."""


def export_command(merged: Path, out: Path, request: CompileRequest) -> list[str]:
    """The exporter's command line. Its data type is the merged model's own."""
    return [
        *("optimum-cli", "export", "neuron", "--model", str(merged), "--task", "text-generation"),
        *("--batch_size", str(request.batch_size), "--sequence_length", str(request.sequence_length)),
        *("--tensor_parallel_size", str(request.tensor_parallel)),
        *("--instance_type", TARGETS[request.instance_type.removeprefix("ml.").partition(".")[0]]),
        str(out),
    ]


def check_request(request: CompileRequest, config: Mapping[str, Any]) -> None:
    """Hold a request against the merged model's config.json: the compiler would take an hour to find out.

    Raises:
        ConfigError: with everything that does not go together.
    """
    problems = []
    if config.get("model_type") not in ARCHITECTURES:
        what = f"the exporter takes {', '.join(ARCHITECTURES)}, got {config.get('model_type')!r}"
        problems.append(Problem("--model", what))
    if (dtype := config.get("dtype") or config.get("torch_dtype")) != request.dtype:
        what = f"must be the merged model's type, {dtype}, got {request.dtype}: the exporter knows no other"
        problems.append(Problem("inference.dtype", what))
    if request.instance_type.removeprefix("ml.").partition(".")[0] not in TARGETS:
        what = f"{request.instance_type!r} is no Neuron instance type; its family must be one of {', '.join(TARGETS)}"
        problems.append(Problem("inference.instance_type", what))
    if request.tensor_parallel < 1:
        what = "must be given: the exporter's own default is the cores of this machine, 0 without a device"
        problems.append(Problem("inference.tensor_parallel", what))
    elif int(config.get("num_attention_heads", 0)) % request.tensor_parallel:
        what = f"must divide the model's {config['num_attention_heads']} attention heads, got {request.tensor_parallel}"
        problems.append(Problem("inference.tensor_parallel", what))
    if request.sequence_length > int(config.get("max_position_embeddings", sys.maxsize)):
        what = f"must be <= {config['max_position_embeddings']}, the model's longest, got {request.sequence_length}"
        problems.append(Problem("inference.sequence_length", what))
    if problems:
        raise ConfigError(problems)


def why_no_compiler() -> str:
    """Which packages the exporter lacks here, in words; empty if it has all."""
    missing = [name for name in COMPILER if importlib.util.find_spec(name.partition(".")[0]) is None]
    return (
        f"{', '.join(missing)} not installed here: use the neuron image, on a Neuron node or a CPU host"
        if missing
        else ""
    )


def run_export(command: Sequence[str]) -> None:
    """Run the exporter; its words go to ours.

    Raises:
        ModelError: it failed.
    """
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=6 * 3600)
    except (subprocess.SubprocessError, OSError) as error:
        raise ModelError(
            f"the export failed ({error}); its own words are above; the command was: {shlex.join(command)}"
        ) from error


def compile_model(
    merged: Path,
    out: Path,
    request: CompileRequest,
    *,
    parents: dict[str, str] | None = None,
    missing: Callable[[], str] = why_no_compiler,
    run: Callable[[Sequence[str]], None] = run_export,
) -> CompiledModel:
    """Compile into `out`, whole or not at all; or say why it was skipped.

    Raises:
        ConfigError: request and model do not go together.
        ModelError: the exporter failed, or left no compiled model.
        StorageError: no room, no permission.
    """
    check_request(request, read_json(merged / "config.json"))
    if (out / RECORD).is_file():
        return CompiledModel.from_dict(read_json(out / RECORD))
    command = shlex.join(export_command(merged, out, request))
    if reason := missing():
        return CompiledModel("", reason, command, "", 0, parents or {})
    with new_directory(out) as beside:
        run(export_command(merged, beside, request))
        if not (beside / "model.pt").is_file():
            raise ModelError(f"the exporter left no model.pt; the command was: {command}")
        files = {str(file.relative_to(beside)): file for file in sorted(beside.rglob("*")) if file.is_file()}
        digest = digest_of({name: digest_file(file) for name, file in files.items()})
        size = sum(file.stat().st_size for file in files.values())
        record = CompiledModel(str(out), "", command, digest, size, parents or {})
        write_json(beside / RECORD, record.to_dict())
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Compile from the command line; prints the record as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m steps.export.compile", description="Compile a merged model for Neuron."
    )
    parser.add_argument("merged", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--tensor-parallel", type=int, required=True)
    parser.add_argument("--instance-type", required=True)
    given = parser.parse_args(argv)
    request = CompileRequest(given.batch_size, given.sequence_length, given.tensor_parallel, given.instance_type)
    record = compile_model(given.merged.resolve(), given.out.resolve(), request)
    print(json.dumps(record.to_dict(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
