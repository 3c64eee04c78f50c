"""`TrainSpec`: all that a rank needs to know, kept as `spec.json` in the training's directory.

Built by `stage`, read by `worker` and (for its LoRA settings) by whoever reads `training.json` beside an adapter. It holds no
secret, and nothing that only the launcher knows: ranks, hosts and attempts come from the environment and the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from steps.errors import ConfigError, Problem, StorageError
from steps.protocol.prepared import prepare_again, verify
from steps.protocol.rundir import TrainDir, read_json
from steps.settings.plan import HoldsTraining
from steps.settings.section import validate

SCHEMA = "hyperpod-lora/train-spec/1"


class TrainSpec(HoldsTraining):
    """One training, with every value decided. Paths are absolute."""

    directory: str
    """The training's own directory; see `rundir.TrainDir`."""
    identity: str
    """Digest of the inputs and of all that changes the mathematics."""
    base_path: str
    base_digest: str
    base_name: str
    """A hub id, or a preset's name."""
    prepared_path: str
    prepared_digest: str
    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    sequence_length: int
    packed: bool
    backend: Literal["torch", "neuron", "torchneuron"] = "torch"
    """`torch`: CPUs and GPUs; `neuron`: Trainium through XLA; `torchneuron`: torch's code on the device `neuron`."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Processes that share each layer; neuron only."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Pipeline stages that the layers are spread over; neuron only."""
    compile_cache: str = ""
    """Compiled graphs: a shared folder, copied to each node and back, or an s3:// prefix; empty: none; not for torch."""
    graphs_only: bool = False
    """A precompile job: all values are zeros, so nothing is compared; neuron only."""
    checkpoint_every: int = Field(ge=1)
    """Steps between saves; the last step is always saved."""
    checkpoints_kept: int = Field(ge=1)
    validation_every: int = Field(ge=1)
    """Steps between validations; the last step is always validated."""
    validation_rows: int = Field(ge=0)
    """Held-out rows looked at each time; 0: no validation."""
    patience: int = Field(default=0, ge=0)
    """Validations without a lower loss that end training; 0: never."""
    keep: Literal["last", "best"] = "last"
    report_to: tuple[str, ...] = ()
    """Trackers; the launching process feeds them. It stays here, so that the digest of a spec stays."""
    threads_per_process: int = Field(default=0, ge=0)
    """CPU threads of a rank; 0: this machine's cores divided by its ranks."""

    @property
    def place(self) -> TrainDir:
        """The training's directory."""
        return TrainDir(Path(self.directory))

    @property
    def findable_base(self) -> str:
        """Written into the adapter as its base model, so that PEFT finds it: a hub id, else the base's folder."""
        return self.base_name if "/" in self.base_name else self.base_path

    def identity_values(self) -> dict[str, Any]:
        """The inputs and all that changes the mathematics: not processes, micro batch, deadlines or code. Plain JSON values."""
        decides = bool(self.patience) or self.keep == "best"
        watched = {
            "every": self.validation_every,
            "rows": self.validation_rows,
            "patience": self.patience,
            "keep": self.keep,
        }
        return {
            "base": self.base_digest,
            "prepared": self.prepared_digest,
            "steps": self.steps,
            **self.training.identity_values(),
            "validation": watched if decides else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first.

        The training's fields stand flat beside the others, as they always did: so the job's digest stays, a job that an earlier
        version began is found again, and that version's workers can read the file.
        """
        raw = self.model_dump(mode="json")
        training = raw.pop("training")
        return {"schema": SCHEMA, **raw, **training}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainSpec:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: another schema, or values that are not allowed.
        """
        if raw.get("schema") != SCHEMA:
            raise ConfigError([Problem("spec.json", f"expected schema {SCHEMA!r}, got {raw.get('schema')!r}")])
        return validate(cls, {key: value for key, value in raw.items() if key != "schema"}, prefix="spec.json: ")


def read_spec(path: Path) -> TrainSpec:
    """The spec in a file.

    Raises:
        StorageError: unreadable.
        ConfigError: readable, but no spec of this version.
    """
    return TrainSpec.from_dict(read_json(path))


def require_data(spec: TrainSpec) -> None:
    """The rows and their order are still those that the spec was made for: others would train something else in silence.

    Raises:
        StorageError: they were changed since.
    """
    found = verify(Path(spec.prepared_path))
    if found.digest != spec.prepared_digest:
        expected = f"the spec was made for {spec.prepared_digest}, found {found.digest}"
        raise StorageError(
            f"{spec.prepared_path} holds other data: {expected}; {prepare_again(Path(spec.prepared_path))}"
        )
