"""Whether a run that goes on with another is the same training, and which settings make it another one, by a person's names.

Called by `stages`: once before anything is fetched, and once when the data is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steps.errors import ConfigError, Problem, StorageError
from steps.flow.training import read_inputs
from steps.plain_text import shorten
from steps.protocol.rundir import RunDir
from steps.settings.catalog import DatasetPreset, ModelPreset
from steps.settings.options import OPTIONS
from steps.settings.plan import Plan

if TYPE_CHECKING:
    from steps.train.spec import TrainSpec

FITTED = ("--global-batch", "--packing", "--validation-fraction")
"""What follows from the data, where nobody gives it."""
WAY_OUT = "leave it out, or start a new run without --continue-from"
Value = Callable[[Plan], object]
_LORA = ("rank", "alpha", "dropout", "targets")
_TRAINING = (
    *("learning_rate", "scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "global_batch"),
    *("precision", "quantization", "seed"),
)
_PLAN = (
    *("max_steps", "epochs", "max_rows", "sequence_length", "packing", "validation_fraction"),
    *("chat_template", "chat_template_kwargs"),
)


def _settings() -> dict[str, Value]:
    """What makes a training another one, by the name that a person gives it → how it stands in a plan."""

    def of(part: Callable[[Plan], object], name: str) -> Value:
        return lambda plan: getattr(part(plan), name)

    found: dict[str, Value] = {
        "--model": lambda plan: _source(plan.model),
        "--dataset": lambda plan: _source(plan.dataset),
    }
    found |= {f"--{name.replace('_', '-')}": of(lambda plan: plan, name) for name in _PLAN}
    found |= {f"--{name.replace('_', '-')}": of(lambda plan: plan.training, name) for name in _TRAINING}
    found |= {f"--{name}": of(lambda plan: plan.training.lora, name) for name in ("method", "init_adapter")}
    found |= {f"--lora-{name}": of(lambda plan: plan.training.lora, name) for name in _LORA}
    found |= {"--columns": lambda plan: plan.dataset.columns}
    found |= {
        f"{name} of the data preset": of(lambda plan: plan.dataset, name) for name in ("shape", "system", "score")
    }
    names = ("every_steps", "max_rows", "early_stopping_patience", "keep")
    return found | {f"validation.{name}": _watched(name) for name in names}


def _watched(name: str) -> Value:
    """A setting of the validation, which counts where it decides what comes out."""
    return lambda plan: getattr(plan.settings.validation, name) if plan.chooses_by_validation else None


def _source(preset: ModelPreset | DatasetPreset) -> str:
    """Where a model or a data set comes from."""
    hub = f"{preset.hub}@{preset.revision}" if preset.hub else ""
    if isinstance(preset, DatasetPreset) and preset.mixture:
        parts = [(part, part.preset) for part in preset.mixture if part.preset]
        return ",".join(f"{_source(found)}:{part.weight or ''}:{part.max_rows or ''}" for part, found in parts)
    return preset.path or preset.s3 or hub or preset.name


def differences(before: Plan, now: Plan) -> list[Problem]:
    """Each setting that makes `now` another training than `before`; those of `FITTED` where somebody gave them."""
    found = []
    for name, value in _settings().items():
        is_fitted = name.removeprefix("--").replace("-", "_") not in now.given
        if name in FITTED and is_fitted:
            continue
        there, here = value(before), value(now)
        if there != here:
            found.append(Problem(name, f"that run has {_shown(there)}, this one {_shown(here)}; {WAY_OUT}"))
    return found


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return shorten(str(value) if value not in ("", {}, None) else "none", 80)


def check_settings(plan: Plan, run: RunDir) -> None:
    """Refuse what would be another training, before anything is fetched; a run without a training contradicts nothing.

    Raises:
        ConfigError: with every setting that differs.
    """
    trainings = list(run.path.glob("train-*/spec.json"))
    if len(trainings) != 1:  # with several, `prepare` finds whether it is one of them
        return
    try:
        before = read_inputs(run).plan
    except StorageError:  # an earlier version's: the identity tells, once the data is prepared
        return
    if problems := differences(before, plan):
        raise ConfigError(problems)


def check_continuation(spec: TrainSpec, run: RunDir, plan: Plan) -> None:
    """A continued run must be one of the trainings in the directory, whatever it runs on.

    Raises:
        ConfigError: with all that differs from the newest of them.
        StorageError: its spec is damaged.
    """
    from steps.train.spec import read_spec

    if spec.place.spec.is_file():
        return
    trainings = sorted(run.path.glob("train-*/spec.json"), key=lambda path: path.stat().st_mtime)
    if not trainings:  # it had prepared data at most: that is taken over, and nothing contradicts it
        return
    try:
        settings = differences(read_inputs(run).plan, plan)
    except StorageError:
        settings = []
    there, here = read_spec(trainings[-1]).identity_values(), spec.identity_values()
    raise ConfigError(
        settings or [_other(name, there.get(name), value) for name, value in here.items() if there.get(name) != value]
    )


def _other(name: str, there: object, here: object) -> Problem:
    """What no setting explains: files that changed, or an earlier version's plan."""
    files = {
        "base": ("--model", "its files are not those that that run trained on"),
        "prepared": (
            "--dataset",
            "its rows are not those that that run trained on: the data, or this version's way to read it, has changed",
        ),
    }
    if name in files:
        where, what = files[name]
        return Problem(where, f"{what}; start a new run without --continue-from")
    where = f"--{name.replace('_', '-')}" if name in OPTIONS else name
    return Problem(where, f"that run has {_shown(there)}, this one {_shown(here)}; {WAY_OUT}")
