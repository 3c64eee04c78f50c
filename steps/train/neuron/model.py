"""The base model with its adapter on Neuron cores: loading, the adapter's start, its weights by name. Used by `neuron_backend`.

The model is optimum-neuron's own, each rank holding its share of every layer. Its MLP is one fused `gate_up_proj`, and with
more tensor parallelism than KV heads q, k and v are one `qkv_proj`; `neuron_consolidate` undoes both.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ModelError
from steps.train.neuron.consolidate import AdapterShape
from steps.train.neuron.planning.layout import has_fused_qkv
from steps.train.neuron.planning.refusals import attention_of, check_sequence_parallel, linear_targets
from steps.train.neuron.start import draw_start, in_ranks_order, module_of
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_NAME = ".default"
"""What peft puts into parameter names, and leaves out of files."""
BASE_PREFIX = "base_model.model."
"""What peft puts before the base model's own names."""


def training_arguments(spec: TrainSpec, *, accumulation: int) -> Any:
    """optimum-neuron's settings; making them fixes tensor and data parallelism for this process.

    Raises:
        ConfigError: sequence parallel is off where it has to be on.
    """
    from optimum.neuron import NeuronTrainingArguments

    arguments = NeuronTrainingArguments(
        output_dir=spec.directory,
        max_steps=spec.steps,
        per_device_train_batch_size=spec.training.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=spec.training.learning_rate,
        lr_scheduler_type="constant_with_warmup",  # a LambdaLR, which `schedule.follow` gives its rates
        weight_decay=spec.training.weight_decay,
        max_grad_norm=spec.training.max_grad_norm or math.inf,  # so that the norm is measured either way
        bf16=spec.training.precision == "bf16",
        zero_1=spec.training.precision == "bf16",  # in fp32, ZeRO-1 of this version keeps moments and updates in bf16
        tensor_parallel_size=spec.tensor_parallel,
        pipeline_parallel_size=spec.pipeline_parallel,
        pipeline_parallel_num_microbatches=accumulation if spec.pipeline_parallel > 1 else -1,
        gradient_checkpointing=spec.training.gradient_checkpointing,
        recompute_causal_mask=not spec.packed,  # else the mask that isolates samples is ignored
        use_xser=False,
        async_save=False,
        save_strategy="no",
        logging_strategy="no",
        skip_cache_push=True,
        disable_tqdm=True,
        log_level="warning",
        report_to="none",
        seed=spec.training.seed,
    )
    check_sequence_parallel(
        tensor_parallel=arguments.trn_config.tensor_parallel_size,
        is_on=arguments.trn_config.sequence_parallel_enabled,
        precision=spec.training.precision,
    )
    return arguments


def lora_config(spec: TrainSpec) -> Any:
    """peft's settings, with the names of the unfused modules."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec.training.lora.rank,
        lora_alpha=spec.training.lora.alpha,
        lora_dropout=spec.training.lora.dropout,
        target_modules=list(linear_targets(spec)),
        use_rslora=spec.training.lora.method == "rslora",
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=spec.findable_base,
    )


def load_model(spec: TrainSpec, arguments: Any) -> Any:
    """This rank's share of the base model, with a fresh adapter: the same start whatever the layout.

    Raises:
        ModelError: the base model cannot be loaded.
    """
    import torch
    from optimum.neuron.models.training import NeuronModelForCausalLM
    from optimum.neuron.peft import get_peft_model

    try:
        base = NeuronModelForCausalLM.from_pretrained(
            spec.base_path,
            arguments.trn_config,
            dtype=torch.bfloat16 if spec.training.precision == "bf16" else torch.float32,
            attn_implementation=attention_of(packed=spec.packed, sequence_length=spec.sequence_length),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the base model in {spec.base_path}: {error}") from error
    if spec.training.gradient_checkpointing:
        base.enable_input_require_grads()  # checkpointed layers give no gradients when nothing that enters them asks for one
    torch.manual_seed(spec.training.seed)  # only now: the first from_pretrained imports what seeds torch with 0
    model = get_peft_model(base, lora_config(spec))
    _start_adapter(model, spec)
    return model


def _start_adapter(model: Any, spec: TrainSpec) -> None:
    """PEFT's start, whatever the layout: the whole matrices, cut for this rank."""
    import torch

    config, training = read_config(spec.base_path), spec.training
    drawn = draw_start(config, linear_targets(spec), rank=training.lora.rank, seed=training.seed)
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    shape = AdapterShape(spec.tensor_parallel, heads, kv_heads, has_fused_qkv(config, spec.tensor_parallel), {})
    for name, parameter in trainable(model).items():
        if "lora_A" not in name and "lora_embedding_B" not in name:
            continue
        mine = in_ranks_order(name, drawn[module_of(name)], shape)
        if part := _part_of(parameter):
            mine = mine.chunk(part[2], dim=part[0])[part[1]]
        with torch.no_grad():
            parameter.copy_(mine)


def _part_of(parameter: Any) -> tuple[int, int, int] | None:
    """(dimension, this rank's place, number of places) of a sharded weight; None for a replicated one."""
    from neuronx_distributed.parallel_layers import parallel_state

    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_size()
    return int(parameter.partition_dim), rank, size


def trainable(model: Any) -> dict[str, Any]:
    """Parameters that are trained, by name; the same order on every rank."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient(parameter: Any) -> Any:
    """Where this rank's sum is: ZeRO-1 in bf16 keeps it in fp32, beside `grad`."""
    return parameter.grad if parameter.grad is not None else parameter.main_grad


def partition_dims(model: Any) -> dict[str, int | None]:
    """By a trained weight's name, as in files: the dimension that is cut over the tensor-parallel ranks; None: replicated."""
    parts = {name: _part_of(parameter) for name, parameter in trainable(model).items()}
    return {name.replace(ADAPTER_NAME, ""): part[0] if part else None for name, part in parts.items()}


def local_weights(model: Any) -> dict[str, Tensor]:
    """This rank's trained weights on the CPU, by their names in files."""
    return {
        name.replace(ADAPTER_NAME, ""): parameter.detach().cpu().clone().contiguous()
        for name, parameter in trainable(model).items()
    }


def read_config(base_path: str) -> dict[str, Any]:
    """The base model's config.json."""
    from steps.protocol.rundir import read_json

    return read_json(Path(base_path) / "config.json")
