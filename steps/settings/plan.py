"""`Plan`: every decision of a run, and its part `Training`, which the workers' spec holds too. Made by `resolve`.

A value is declared here once. To add one to the training: a field of `Options`, a field of `Training`, its line in `resolve`, and
the code that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steps.settings.catalog import DatasetPreset, ModelPreset
from steps.settings.config import Settings
from steps.settings.options import Dtype, Method, Precision, Quantization, Scheduler, Sharding
from steps.settings.section import Section

LAYOUT = "layout"
"""Marks a field of `Training` that says how the same values are computed: it is not in the identity."""


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


class Training(Section):
    """What is trained and how. All fields but those marked LAYOUT change the mathematics, so they are in the identity."""

    learning_rate: float = Field(gt=0)
    """Peak, of AdamW."""
    scheduler: Scheduler
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    """0: gradients are not clipped."""
    lora: LoraSettings
    global_batch: int = Field(ge=1)
    """Rows per optimizer step, over all processes."""
    micro_batch: Annotated[int, LAYOUT] = Field(ge=1)
    """Rows per forward pass on one process."""
    gradient_checkpointing: Annotated[bool, LAYOUT] = False
    precision: Precision
    quantization: Quantization
    sharding: Annotated[Sharding, LAYOUT] = "ddp"
    seed: int

    def identity_values(self) -> dict[str, Any]:
        """The fields that change the mathematics, as JSON values.

        A field added later needs a default that means "as before": while it has that value it is left out, so that earlier runs
        keep their identity.
        """
        raw = self.model_dump(mode="json")
        fields = type(self).model_fields
        chosen = {name: raw[name] for name, field in fields.items() if LAYOUT not in field.metadata}
        return {name: value for name, value in chosen.items() if value != fields[name].default}


class HoldsTraining(Section):
    """A section with a `training`. Earlier versions wrote its fields flat beside the others: they are read as well."""

    training: Training

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "training" in raw:
            return raw
        names = Training.model_fields.keys()
        others = {name: value for name, value in raw.items() if name not in names}
        return {**others, "training": {name: raw[name] for name in names if name in raw}}


class Plan(HoldsTraining):
    """Every decision of a run. Kept as an artifact (`model_dump(mode='json')`)."""

    model: ModelPreset
    dataset: DatasetPreset
    settings: Settings
    max_steps: int
    """0: `epochs` decides, once the rows are counted."""
    epochs: float
    max_rows: int
    chat_template: str = ""
    """Jinja, the text itself; empty: the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the template, whichever it is."""
    sequence_length: int
    packing: bool
    processes: int
    """Per node; 0 until `train.stage.lay_out` has chosen."""
    tensor_parallel: int
    """Processes that share each layer of one replica; 0 until `train.stage.lay_out` has chosen."""
    pipeline_parallel: int = 1
    """Pipeline stages that one replica's layers are spread over."""
    layout: tuple[str, ...] = ()
    """Why these processes and this tensor parallelism, in words."""
    precision_reason: str = ""
    """What a person should know of the precision; empty where there was nothing to choose."""
    validation_fraction: float
    """Of the samples, held out; 0: as many as `prepare.share` finds enough."""
    merge_dtype: Literal["auto", Dtype] = "auto"
    """Of the merged weights; auto: the base model's own."""
    given: tuple[str, ...] = ()
    """Options that a person gave; what is not among them may be fitted to the data and to the model."""
    packing_reason: str = ""
    """Why packing is off where it was on by default; empty: it is as asked."""
    continue_from: str = ""
    dry_run: bool = False

    @property
    def accumulation(self) -> int:
        """Micro-batches that each process adds up for one optimizer step."""
        return self.training.global_batch // (self.replicas * self.training.micro_batch)

    @property
    def chooses_by_validation(self) -> bool:
        """The validation loss decides which adapter becomes the result."""
        validation = self.settings.validation
        return validation.keep == "best" or validation.early_stopping_patience > 0

    def validation_rows(self, held_out: int) -> int:
        """Of so many held-out samples, those that validation looks at: the first ones, at most half where they decide."""
        most = held_out // 2 or held_out if self.chooses_by_validation else held_out
        return min(self.settings.validation.max_rows, most)

    def evaluation_start(self, held_out: int) -> int:
        """The first held-out sample that evaluation measures: none of those that decided, if there are two or more."""
        return self.validation_rows(held_out) if self.chooses_by_validation and held_out > 1 else 0

    def evaluation_rows(self, held_out: int) -> int:
        """Of so many held-out samples, those that evaluation may measure."""
        return min(self.settings.evaluation.max_rows, held_out - self.evaluation_start(held_out))

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
        return replicas > 0 and rest == 0 and self.training.global_batch % (replicas * self.training.micro_batch) == 0
