"""`Plan`: every decision of a run. Made by `presets.resolve`; every stage reads its part of it."""

from __future__ import annotations

from steps.settings.catalog import DatasetPreset, ModelPreset
from steps.settings.config import Settings
from steps.settings.options import Method, Precision, Quantization, Scheduler, Sharding
from steps.settings.section import Section


class LoraSettings(Section):
    """The adapter's shape."""

    method: Method
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    """Module names, or the single word `all-linear`."""
    init_adapter: str = ""
    """PEFT folder to start from, which then decides the rest; empty: fresh."""


class Plan(Section):
    """Every decision of a run. Kept as an artifact (`model_dump(mode='json')`)."""

    model: ModelPreset
    dataset: DatasetPreset
    settings: Settings
    lora: LoraSettings
    learning_rate: float
    scheduler: Scheduler
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_steps: int
    """0: `epochs` decides, once the rows are counted."""
    epochs: float
    max_rows: int
    sequence_length: int
    packing: bool
    global_batch: int
    micro_batch: int
    processes: int
    """Per node; 0 until `train.stage.lay_out` has chosen."""
    tensor_parallel: int
    """Processes that share each layer of one replica; 0 until `train.stage.lay_out` has chosen."""
    pipeline_parallel: int = 1
    """Stages that one replica's layers are spread over."""
    layout: tuple[str, ...] = ()
    """Why these processes and this tensor parallelism, in words."""
    gradient_checkpointing: bool
    precision: Precision
    precision_reason: str = ""
    """What a person should know of it; empty where there was nothing to choose."""
    quantization: Quantization
    sharding: Sharding
    seed: int
    validation_fraction: float
    given: tuple[str, ...] = ()
    """Options that a person gave; what is not among them may be fitted to the data and to the model."""
    packing_reason: str = ""
    """Why packing is off where it was on by default; empty: it is as asked."""
    continue_from: str = ""
    dry_run: bool = False

    @property
    def accumulation(self) -> int:
        """Micro-batches that each process adds up for one optimizer step."""
        return self.global_batch // (self.replicas * self.micro_batch)

    @property
    def nodes(self) -> int:
        """Machines of the training."""
        return self.settings.cluster.nodes if self.settings.is_on_cluster else 1

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes

    @property
    def replicas(self) -> int:
        """Copies of the model that take rows of their own."""
        return self.world // self.replica_size

    @property
    def replica_size(self) -> int:
        """Processes of one replica."""
        return max(self.tensor_parallel, 1) * self.pipeline_parallel

    @property
    def is_laid_out(self) -> bool:
        """Processes and tensor parallelism are decided."""
        return bool(self.processes and self.tensor_parallel)

    @property
    def node_choices(self) -> tuple[int, ...]:
        """Numbers of nodes between `cluster.nodes` and `cluster.min_nodes` that the global batch can feed, the largest first."""
        if self.nodes == 1:
            return (1,)
        return tuple(nodes for nodes in self.settings.cluster.node_choices if self._feeds(nodes))

    def _feeds(self, nodes: int) -> bool:
        """Whole replicas on so many nodes, and the global batch a multiple of the rows that they take at once."""
        replicas, rest = divmod(nodes * self.processes, self.replica_size)
        return replicas > 0 and rest == 0 and self.global_batch % (replicas * self.micro_batch) == 0
