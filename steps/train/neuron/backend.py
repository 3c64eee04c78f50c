"""The backend for Trainium: optimum-neuron's trainer, mended. Satisfies `backend.Backend`; made by `worker`.

Tensor and pipeline parallelism inside a replica, sequence parallel with the first, ZeRO-1 over the replicas. Runs on Neuron
cores; nothing else is needed of the machine than torchrun's environment.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.protocol.handover import HeldOutLoss
from steps.protocol.prepared import PreparedRows
from steps.protocol.rundir import storage_errors, write_atomic, write_json
from steps.train.loop.backend import Listener, ModelSize, Told
from steps.train.loop.feed import Feed
from steps.train.loop.ranks import Ranks
from steps.train.neuron.cache import STEADY, KeepsGraphs, fetch_graphs, keep_graphs
from steps.train.neuron.consolidate import SHAPE, AdapterShape, consolidate_checkpoint, shard_name
from steps.train.neuron.planning.layout import has_fused_qkv
from steps.train.neuron.planning.refusals import attention_of, check_training
from steps.train.neuron.ranks import by_replica
from steps.train.neuron.replicas import Copies, require_equal
from steps.train.neuron.state import Place
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor

    from steps.train.neuron.state import OptimizerState

logger = logging.getLogger(__name__)


class NeuronBackend:
    """Trains one spec on this core, together with its peers."""

    def __init__(
        self, spec: TrainSpec, ranks: Ranks, prepared: PreparedRows, *, stop_asked: Callable[[], bool]
    ) -> None:
        """Check all that the libraries would only find out late, or never.

        Raises:
            ConfigError: spec, model and processes do not go together here.
        """
        from steps.train.neuron.model import read_config

        self._config = read_config(spec.base_path)
        check_training(spec, self._config, world=ranks.world)
        self._at = Place.of(ranks, spec.tensor_parallel, spec.pipeline_parallel)
        replicas = Ranks(rank=self._at.dp, world=self._at.data_parallel)
        self._feed = Feed(prepared, spec, replicas)
        self._spec, self._ranks, self._stop_asked = spec, ranks, stop_asked
        self._checkpoint: Path | None = None
        self._best: dict[str, Tensor] | None = None
        self._head: HeldOutLoss | None = None
        self._is_at_end = True
        """Nothing was trained here: a checkpoint, if there is one, holds the result."""
        self._trainer: Any = None

    @property
    def layout(self) -> dict[str, Any]:
        """What a checkpoint records of this training's shape."""
        return {
            "backend": "neuron",
            "world": self._ranks.world,
            "dp": self._at.data_parallel,
            "tp": self._spec.tensor_parallel,
            "pp": self._spec.pipeline_parallel,
            "micro_batch": self._spec.training.micro_batch,
            "zero_1": self._spec.training.precision == "bf16",
            "attention": attention_of(packed=self._spec.packed, sequence_length=self._spec.sequence_length),
            "packing": "isolated" if self._spec.packed else "off",
        }

    @property
    def shapes(self) -> int | None:
        """Not counted: the library's collator makes one."""
        return None

    def fits(self, layout: Mapping[str, Any]) -> str | None:
        """Any number of replicas can go on with any other's checkpoint; tensor and pipeline parallelism must be the same."""
        return why_not(layout, self.layout)

    def load(self, checkpoint: Path | None) -> ModelSize:
        """This rank's share of the model; a checkpoint's weights come with its optimizer, in `train`."""
        from steps.train.neuron.model import load_model, trainable, training_arguments
        from steps.train.neuron.trainer import LoraTrainer, require_place

        self._fetch_graphs()
        arguments = training_arguments(self._spec, accumulation=self._feed.slicing.accumulation)
        require_place(self._at)
        self._model = load_model(self._spec, arguments)
        self._trainer = LoraTrainer(self._model, arguments, spec=self._spec, ranks=self._ranks, feed=self._feed)
        self._checkpoint = checkpoint
        if checkpoint is not None:
            self._load_best(checkpoint)
        count = sum(parameter.numel() for parameter in self._model.parameters())
        return ModelSize(count, sum(parameter.numel() for parameter in trainable(self._model).values()))

    def _fetch_graphs(self) -> None:
        if self._ranks.local_rank == 0:
            count = fetch_graphs(self._spec.compile_cache)
            logger.info("%d compiled graphs taken from %s", count, self._spec.compile_cache or "nowhere")
        self._ranks.gather(None)

    def _shard(self, *, best: bool = False) -> str:
        return shard_name(self._at.tp, self._at.pp, best=best)

    def _load_best(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        path = checkpoint / self._shard(best=True)
        if path.is_file():
            self._best = load_file(path)

    def train(self, *, done: int, listener: Listener) -> None:
        """Run the library's loop from step `done` on."""
        from steps.train.neuron.trainer import Course

        restore = self._restore if self._checkpoint is not None else None
        self._is_at_end = False
        keeping = KeepsGraphs(listener, done + STEADY, self._keep_graphs)
        self._trainer.follow(Course(done, restore, keeping, self._stop_asked))

    def _keep_graphs(self) -> None:
        if self._ranks.rank == 0:
            keep_graphs(self._spec.compile_cache)

    def _restore(self, optimizer: OptimizerState, scheduler: Any) -> None:
        from safetensors.torch import load_file

        assert self._checkpoint is not None
        optimizer.restore(self._checkpoint, scheduler, load_file(self._checkpoint / self._shard()))

    def validate(self, told: Told) -> float:
        """Every replica looks at its share; sums are added in the order of the rows. How far it is is not told."""
        everyone = by_replica(self._ranks.gather(self._trainer.validation_sums()), self._spec)
        pairs: list[tuple[float, int]] = [pair for pairs in everyone for pair in pairs][: self._feed.validation_count]
        self._head = self._feed.head_of(pairs)
        return math.fsum(loss for loss, _ in pairs) / max(sum(count for _, count in pairs), 1)

    def validation_head(self) -> HeldOutLoss | None:
        """Of the last validation."""
        return self._head

    def check_export(self, folder: Path, expected: HeldOutLoss) -> None:
        """Rank 0 loads the adapter as anyone would, on the host: no core has the whole model."""
        from steps.train.loop.handover import check_on_host

        if self._ranks.rank == 0:
            check_on_host(self._spec, folder, expected)

    def remember_best(self) -> None:
        """Copy this rank's weights to the CPU."""
        from steps.train.neuron.model import local_weights

        self._best = local_weights(self._model)

    def save(self, folder: Path) -> None:
        """Adapter, optimizer and schedule, each rank its own part, once all agree on what they share.

        Raises:
            ReplicaError: they do not; the directory stays without its COMPLETE.json.
        """
        from steps.train.neuron.model import local_weights

        weights = local_weights(self._model)
        self._require_equal(weights)  # also the point at which rank 0 has made the directory
        self._write_weights(folder, weights, self._best)
        self._trainer.state_of_optimizer.save(folder, self._trainer.lr_scheduler, writes_numbers=self._ranks.rank == 0)
        self._ranks.gather(None)  # after this line every rank's file is there
        self._keep_graphs()  # those of validation too

    @property
    def _kv_heads(self) -> int:
        return int(self._config.get("num_key_value_heads") or self._config["num_attention_heads"])

    def _require_equal(self, weights: dict[str, Tensor]) -> None:
        from steps.train.neuron.model import partition_dims

        digests = {name: _digest(tensor) for name, tensor in weights.items()}
        is_fused = has_fused_qkv(self._config, self._spec.tensor_parallel)
        mine = Copies.of(self._at, digests, partition_dims(self._model), self._kv_heads if is_fused else None)
        require_equal(self._ranks.gather(mine), step=int(self._trainer.state.global_step))

    def _shape(self) -> AdapterShape:
        """Of all stages; asks them."""
        from steps.train.neuron.model import partition_dims

        stages = self._ranks.gather(partition_dims(self._model))
        return AdapterShape(
            tensor_parallel=self._spec.tensor_parallel,
            heads=int(self._config["num_attention_heads"]),
            kv_heads=self._kv_heads,
            replicates_kv=has_fused_qkv(self._config, self._spec.tensor_parallel),
            partition_dims={name: dim for dims in stages for name, dim in dims.items()},
            pipeline_parallel=self._spec.pipeline_parallel,
        )

    def _write_weights(self, folder: Path, weights: dict[str, Tensor], best: dict[str, Tensor] | None) -> None:
        from safetensors.torch import save

        from steps.train.neuron.model import lora_config

        shape = self._shape()
        if self._at.dp == 0:
            write_atomic(folder / self._shard(), save(weights))
            if best is not None:
                write_atomic(folder / self._shard(best=True), save(best))
        if self._ranks.rank == 0:
            write_json(folder / SHAPE, shape.to_dict())
            config = lora_config(self._spec)
            config.inference_mode = True
            with storage_errors(f"writing {folder}"):
                config.save_pretrained(folder)

    def export(self, folder: Path, *, best: bool) -> None:
        """The ranks' parts beside each other, put together by rank 0; the last adapter where none was remembered as best.

        Raises:
            CheckpointError: copies of a weight differ between the ranks.
        """
        import shutil

        from steps.train.neuron.model import local_weights

        if self._is_at_end and self._checkpoint is not None:
            if self._ranks.rank == 0:
                consolidate_checkpoint(self._checkpoint, folder, best=best and self._best is not None)
            return
        weights = self._best if best and self._best is not None else local_weights(self._model)
        parts = folder / "parts"
        if self._ranks.rank == 0:
            with storage_errors(f"writing {parts}"):
                parts.mkdir()
        self._ranks.gather(None)
        self._write_weights(parts, weights, None)
        self._ranks.gather(None)
        if self._ranks.rank == 0:
            consolidate_checkpoint(parts, folder)
            shutil.rmtree(parts)


def _digest(tensor: Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def why_not(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Why a checkpoint with layout `saved` cannot be continued with layout `ours`, None if it can."""
    if saved.get("backend") != ours["backend"]:
        return f"it was saved by backend {saved.get('backend')}, this is {ours['backend']}"
    for key, what in (("tp", "tensor parallel"), ("pp", "pipeline parallel")):
        if saved.get(key) != ours[key]:
            return f"it was saved with {what} {saved.get(key)}, this is {ours[key]}; only the number of replicas may change"
    return None
