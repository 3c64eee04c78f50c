"""One rank of a test training. On Neuron cores it is the worker and nothing else; where a stand-in for them is on the path
(a module `neuron_cpu` that carries torch_xla's collectives over gloo), that comes first."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

with contextlib.suppress(ModuleNotFoundError):
    import neuron_cpu  # noqa: F401

from steps.train.worker import main


def set_up_unlinked(trainer: Any, *args: Any, **kwargs: Any) -> None:
    """As the library leaves it: the schedule belongs to an optimizer that nobody steps."""
    from steps.train.loop.schedule import follow

    type(trainer).__base__.setup_training(trainer, *args, **kwargs)
    follow(trainer.lr_scheduler, trainer._spec)
    trainer.state.global_step = trainer._course.done


def undo(fix: str) -> None:
    """Take one of our fixes away, to see the guard speak. It happens where the worker first imports the trainer."""
    import steps.train.neuron.model as neuron_model
    from steps.train.neuron.state import Place

    if fix == "place":  # as if the library laid out its ranks in another order than ours
        Place.of = classmethod(lambda cls, ranks, *sizes: cls(1 - ranks.rank, 0, 2))  # type: ignore[assignment]

    load = neuron_model.load_model

    def load_and_undo(*args: Any) -> Any:
        from steps.train.neuron.inputs import with_mask
        from steps.train.neuron.trainer import LoraTrainer

        if fix == "sum":
            LoraTrainer._add_up_replicated = lambda self: None  # type: ignore[method-assign]
        if fix == "reduction":  # as if the model took no notice that the loss is to be a sum
            LoraTrainer._forward = lambda self, inputs: self.model(**with_mask(inputs, self._spec))  # type: ignore[method-assign]
        if fix == "link":
            LoraTrainer.setup_training = set_up_unlinked
        return load(*args)

    neuron_model.load_model = load_and_undo


if "NEURON_TEST_UNDO" in os.environ:
    undo(os.environ["NEURON_TEST_UNDO"])
code = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
