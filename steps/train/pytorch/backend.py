"""The backend for CPUs and GPUs: transformers' models, peft and a loop of our own. Satisfies `backend.Backend`; made by `worker`.

One process or several (replicas whose gradients are summed in a fixed tree, so that 1, 2 and 4 give equal bits), or FSDP,
which goes on only with as many processes as before.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import machine
from steps.library_versions import checkpoint_activations
from steps.protocol.handover import HeldOutLoss
from steps.protocol.rundir import storage_errors, write_json
from steps.train.loop.backend import Listener, ModelSize, Told
from steps.train.loop.feed import Feed
from steps.train.loop.ranks import Ranks
from steps.train.neuron.cache import STEADY, KeepsGraphs
from steps.train.spec import TrainSpec
from steps.train.torchneuron.cache import fetch_graphs, keep_graphs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

ADAPTER = "adapter_model.safetensors"
BEST = "best_adapter.safetensors"


class TorchBackend:
    """Trains one spec in this process, together with its peers."""

    def __init__(self, spec: TrainSpec, ranks: Ranks, feed: Feed, *, stop_asked: Callable[[], bool]) -> None:
        self._spec, self._ranks, self._feed, self._stop_asked = spec, ranks, feed, stop_asked
        self._checkpoint: Path | None = None
        self._best: dict[str, Tensor] | None = None
        self._head: HeldOutLoss | None = None
        self._graphs = spec.compile_cache if spec.backend == "torchneuron" else ""
        self._shapes: set[tuple[int, ...]] | None = None
        """Of batches, on devices that compile each."""

    @property
    def layout(self) -> dict[str, Any]:
        """What a checkpoint records of this training's shape."""
        return {
            "backend": "torch",
            "sharding": self._spec.training.sharding,
            "world": self._ranks.world,
            "dp": self._ranks.world,
            "tp": 1,
            "pp": 1,
            "micro_batch": self._spec.training.micro_batch,
        }

    @property
    def shapes(self) -> int | None:
        """On devices that compile each; there it should be 1."""
        return None if self._shapes is None else len(self._shapes)

    def fits(self, layout: Mapping[str, Any]) -> str | None:
        """Any number of replicas can go on with any other's checkpoint; FSDP only with its own layout's."""
        return why_not(layout, self.layout)

    def load(self, checkpoint: Path | None) -> ModelSize:
        """Model and adapter on this rank's device; a checkpoint's weights when there is one."""
        from steps.train.loop.device import require_neuron, take_device
        from steps.train.pytorch.model import make_mesh

        if self._spec.backend == "torchneuron":
            require_neuron()
        self._device = take_device(self._ranks.local_rank)
        self._fetch_graphs()
        is_sharded = self._spec.training.sharding == "fsdp"
        mesh = make_mesh(self._device, self._ranks.world) if is_sharded else None
        with self._ranks.in_turn(self._loaders()):
            return self._load(checkpoint, mesh)

    def _loaders(self) -> int:
        """How many processes of a machine load at once: on the CPU all, since there the model stays in the machine's memory."""
        from steps.train.loop.device import loaders
        from steps.train.loop.handover import needed_memory

        mine = self._ranks.local_world
        if self._device.type == "cpu" or mine == 1:
            return mine
        needed = needed_memory(self._spec, self._device.type)
        count = self._ranks.share(loaders(needed, mine, free_bytes=machine.free_memory()))
        if count < mine:
            logger.info(
                "the model is loaded by %d of %d processes at a time: the machine's memory holds no more", count, mine
            )
        return count

    def _load(self, checkpoint: Path | None, mesh: Any) -> ModelSize:
        from steps.train.loop.device import COMPILED, fixed_width
        from steps.train.pytorch.model import TargetLoss, load_model, require_one_shape, shard, trainable

        training = self._spec.training
        self._model = load_model(self._spec, place=self._device)
        if training.gradient_checkpointing:
            checkpoint_activations(self._model)
        is_fixed = self._device.type in COMPILED
        if is_fixed:
            require_one_shape(self._spec, self._model, self._device.type)
            logger.info("every batch has the shape %s", self._feed.fix_shape(fixed_width(self._spec.sequence_length)))
        self._loss = TargetLoss(self._model, precision=training.precision, is_fixed=is_fixed)
        self._shapes = self._loss.shapes if is_fixed else None
        self._checkpoint = checkpoint
        if checkpoint is not None:
            self._load_adapter(checkpoint)
        count = sum(parameter.numel() for parameter in self._model.parameters())
        size = ModelSize(count, sum(parameter.numel() for parameter in trainable(self._model).values()))
        if mesh is not None:
            shard(self._model, mesh)
        elif training.quantization == "none":  # a quantised one is there already
            self._model.to(self._device)
        return size

    def _load_adapter(self, checkpoint: Path) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self._model, load_file(checkpoint / ADAPTER))
        if (checkpoint / BEST).is_file():
            self._best = load_file(checkpoint / BEST)

    def train(self, *, done: int, listener: Listener) -> None:
        """Run the loop from step `done` on."""
        from steps.train.pytorch.model import trainable
        from steps.train.pytorch.state import restore
        from steps.train.pytorch.training import Course, TrainingLoop

        self._loop = TrainingLoop(
            self._model, self._loss, spec=self._spec, ranks=self._ranks, feed=self._feed, place=self._device
        )
        if self._checkpoint is not None:
            restore(self._checkpoint, self._loop.optimizer, self._loop.scheduler, trainable(self._model))
        keeping = KeepsGraphs(listener, done + STEADY, self._keep_graphs)
        self._loop.follow(Course(done, keeping, self._stop_asked))

    def _fetch_graphs(self) -> None:
        """What other nodes compiled, brought here by one process before any needs it."""
        if not self._graphs:
            return
        if self._ranks.local_rank == 0:
            logger.info("%d compiled graphs taken from %s", fetch_graphs(self._graphs), self._graphs)
        self._ranks.wait()

    def _keep_graphs(self) -> None:
        if self._ranks.rank == 0:
            keep_graphs(self._graphs)

    def validate(self, told: Told) -> float:
        """Every rank looks at its share; sums are added in the order of the rows, so they do not depend on the layout."""
        import torch

        self._model.eval()
        batches, mine = self._feed.validation_batches(), []
        with torch.no_grad():
            for number, batch in enumerate(batches):
                told(number, len(batches))
                mine.append((self._loss(self._model, batch, self._device).item(), batch.target_count))
        everyone = [pair for pairs in self._ranks.gather(mine) for pair in pairs][: self._feed.validation_count]
        self._head = self._feed.head_of(everyone)
        return math.fsum(loss for loss, _ in everyone) / max(sum(count for _, count in everyone), 1)

    def validation_head(self) -> HeldOutLoss | None:
        """Of the last validation."""
        return self._head

    def remember_best(self) -> None:
        """Copy the adapter's weights to the CPU."""
        from steps.train.pytorch.model import adapter_weights

        self._best = adapter_weights(self._model)

    def save(self, folder: Path) -> None:
        """Adapter, optimizer and schedule; written by rank 0, gathered from all when sharded."""
        from safetensors.torch import save

        from steps.train.pytorch.model import adapter_weights, trainable, write_adapter
        from steps.train.pytorch.state import NUMBERS, OPTIMIZER, numbers, optimizer_tensors

        optimizer, scheduler = self._loop.optimizer, self._loop.scheduler
        weights = adapter_weights(self._model)
        moments = optimizer_tensors(optimizer, trainable(self._model))
        if self._ranks.rank:
            return
        with storage_errors(f"writing {folder}"):
            write_adapter(folder, self._model, weights, base_name=self._spec.findable_base)
            (folder / OPTIMIZER).write_bytes(save(moments))
            if self._best is not None:
                (folder / BEST).write_bytes(save(self._best))
        write_json(folder / NUMBERS, numbers(optimizer, scheduler))
        self._keep_graphs()  # those of validation too

    def export(self, folder: Path, *, best: bool) -> None:
        """The adapter, written by rank 0; the last one where none was remembered as best."""
        from steps.train.pytorch.model import adapter_weights, write_adapter

        weights = self._best if best and self._best is not None else adapter_weights(self._model)
        if self._ranks.rank == 0:
            with storage_errors(f"writing {folder}"):
                write_adapter(folder, self._model, weights, base_name=self._spec.findable_base)

    def check_export(self, folder: Path, expected: HeldOutLoss) -> None:
        """Rank 0 loads the adapter as anyone would, in the memory of the model that was trained. On the processor where that was
        sharded and the whole does not fit, and where each length of a row would be compiled."""
        from steps.train.loop.device import COMPILED
        from steps.train.loop.handover import check_adapter, check_on_host, fits_device
        from steps.train.pytorch.model import four_bits

        if self._ranks.rank:
            return
        del self._model, self._loss
        self.__dict__.pop("_loop", None)
        gc.collect()
        place, spec = self._device, self._spec
        if place.type in COMPILED or (spec.training.sharding == "fsdp" and not fits_device(spec, place)):
            check_on_host(spec, folder, expected)
            return
        is_quantised = spec.training.quantization == "4bit"
        options = {"quantization_config": four_bits(spec), "device_map": {"": place}} if is_quantised else None
        check_adapter(spec, folder, expected, place=place, options=options)


def why_not(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Why a checkpoint with layout `saved` cannot be continued with layout `ours`, None if it can."""
    if saved.get("backend") != ours["backend"]:
        return f"it was saved by backend {saved.get('backend')}, this is {ours['backend']}"
    if saved.get("sharding") != ours["sharding"]:
        return f"it was saved with sharding {saved.get('sharding')}, this is {ours['sharding']}"
    if ours["sharding"] == "fsdp" and saved.get("world") != ours["world"]:
        return f"fsdp goes on with as many processes as saved it: {saved.get('world')}, not {ours['world']}"
    return None
