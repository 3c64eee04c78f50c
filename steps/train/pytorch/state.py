"""The optimizer's and scheduler's state as safetensors and JSON: no pickle, nothing that depends on the layout.

Used by `torch_backend`. Tensors are kept by parameter name, `exp_avg/<name>`; numbers go to a JSON file beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import CheckpointError
from steps.protocol.rundir import read_json
from steps.train.pytorch.model import whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

OPTIMIZER = "optimizer.safetensors"
NUMBERS = "trainer.json"


def optimizer_tensors(optimizer: Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, on the CPU (a collective when sharded)."""
    return {
        f"{key}/{name}": whole(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def numbers(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """What the schedule has come to, as JSON values; Python writes floats so that they read back to the same bits."""
    schedule = {key: value for key, value in scheduler.state_dict().items() if isinstance(value, int | float | list)}
    schedule.pop("lr_lambdas", None)  # functions; they follow from the spec
    return {"rates": [float(group["lr"]) for group in optimizer.param_groups], "schedule": schedule}


def restore(folder: Path, optimizer: Optimizer, scheduler: Any, parameters: dict[str, Tensor]) -> None:
    """Put a saved state into a fresh optimizer and scheduler.

    Raises:
        CheckpointError: it is of other parameters.
    """
    from safetensors.torch import load_file

    saved = load_file(folder / OPTIMIZER)
    found = read_json(folder / NUMBERS)
    names = {key.partition("/")[2] for key in saved}
    if names != set(parameters):
        raise CheckpointError(
            f"{folder} holds the optimizer's state of {len(names)} tensors, this training has {len(parameters)}, or other "
            "ones: it is of another training, move it away and run again"
        )
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        optimizer.state[parameters[name]][kind] = _like(parameters[name], kind, value)
    for group, rate in zip(optimizer.param_groups, found["rates"], strict=True):
        group["lr"] = rate
    scheduler.load_state_dict({**scheduler.state_dict(), **found["schedule"]})


def _like(parameter: Any, kind: str, value: Tensor) -> Tensor:
    """The value on its parameter's device, sharded as that is; step counts are plain scalars."""
    if value.ndim and hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)
