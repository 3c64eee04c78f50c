"""The base model with its adapter in torch, its loss, and its adapter's weights as plain tensors. Used by `torch_backend`.

Rows are padded on the right and attention is causal, so real tokens never see padding and no mask is needed. That samples of a
packed row never see each other is `torch_attention`'s work, or, for models that it does not know, transformers' own: it builds a
block-diagonal mask when position_ids start again at each sample and there is neither a mask nor a cache.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.errors import ConfigError, ModelError, Problem
from steps.settings.catalog import ALL_LINEAR
from steps.train.loop.rows import Batch, sample_numbers
from steps.train.pytorch.attention import NAME, choose_attention
from steps.train.pytorch.skeleton import exclusion
from steps.train.spec import TrainSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, device
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def load_model(spec: TrainSpec, *, place: device) -> PeftModel:
    """The base model on `place` with a fresh adapter (seeded, so equal on all ranks) or the one to start from.

    Raises:
        ConfigError: LoRA targets that the model lacks, 4bit where it does not run.
        ModelError: the base model cannot be loaded.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    base = _load_base(spec, place)
    torch.manual_seed(spec.training.seed)
    lora = spec.training.lora
    if lora.init_adapter:
        return PeftModel.from_pretrained(base, lora.init_adapter, is_trainable=True)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        exclude_modules=exclusion(base),
        use_rslora=lora.method == "rslora",
        use_dora=lora.method == "dora",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise ConfigError([Problem("--lora-targets", f"{','.join(lora.targets)}: {error}")]) from error


def _load_base(spec: TrainSpec, place: device) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if spec.training.precision == "bf16" else torch.float32,
        "local_files_only": True,
        "use_safetensors": True,
    }
    if spec.training.quantization == "4bit":
        options |= {"quantization_config": four_bits(spec), "device_map": {"": place}}
    try:
        config = AutoConfig.from_pretrained(spec.base_path, local_files_only=True)
        attention = choose_attention(config, sequence_length=spec.sequence_length)
        return AutoModelForCausalLM.from_pretrained(spec.base_path, attn_implementation=attention, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the base model in {spec.base_path}: {error}") from error


def four_bits(spec: TrainSpec) -> Any:
    """bitsandbytes' NF4, with double quantisation.

    Raises:
        ConfigError: it is not installed.
    """
    import importlib.util

    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            [Problem("--quantization", "4bit needs bitsandbytes, which is not installed; use --quantization none")]
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if spec.training.precision == "bf16" else torch.float32,
    )


def make_mesh(place: device, world: int) -> Any:
    """All ranks in a row (a collective)."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(place.type, (world,))


def shard(model: PeftModel, mesh: Any) -> None:
    """Split every decoder layer's weights, and the rest, over the ranks (FSDP2), in place.

    torch's own call instead of accelerate's plugin, which refuses to run without an accelerator.
    """
    from torch.distributed.fsdp import fully_shard

    layers = set(model.get_base_model()._no_split_modules or [])
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def require_one_shape(spec: TrainSpec, model: PeftModel, kind: str) -> None:
    """What a device that compiles every shape cannot do, or not within reason.

    Raises:
        ConfigError: packed samples that only a mask of transformers' own keeps apart, or 4bit.
    """
    problems = []
    if spec.packed and model.config._attn_implementation != NAME:
        what = f"samples of {model.config.model_type} cannot be kept apart on {kind} without a new shape for each row"
        problems.append(Problem("--packing", f"{what}; use --packing off"))
    if spec.training.quantization == "4bit":
        problems.append(Problem("--quantization", f"4bit needs bitsandbytes, which knows no {kind}; use none"))
    if problems:
        raise ConfigError(problems)


class TargetLoss:
    """Cross-entropy summed over a batch's target tokens.

    Logits are needed only where a target is predicted, a fraction of all positions when only answers are learned, and the
    output layer is a fifth of a small model. A hook hands it just these positions; the loss is the same.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, *, precision: str, is_fixed: bool = False) -> None:
        """`is_fixed`: batches of one shape, in which nothing that is computed depends on the samples' lengths."""
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(self._select)
        self._at: Tensor | None = None
        self._precision = precision
        self._is_fixed = is_fixed
        self.shapes: set[tuple[int, ...]] = set()
        """(b, L, targets) of every batch so far."""
        self._by_sample = model.config._attn_implementation == NAME

    def _select(self, module: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, -2)[self._at], *inputs[1:])

    def __call__(self, model: Any, batch: Batch, place: device) -> Tensor:
        """The sum, in fp32, of a batch of `rows.collate`."""
        import torch
        from torch.nn.functional import cross_entropy

        self._count(batch)
        input_ids = torch.from_numpy(batch.input_ids).to(place)
        self._at = torch.from_numpy(batch.predict_at).to(place)
        targets = torch.from_numpy(batch.targets).to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=self._precision == "bf16"):
            logits = model(input_ids=input_ids, use_cache=False, **self._isolation(batch, input_ids)).logits
        return cross_entropy(logits.float(), targets, reduction="sum")

    def _count(self, batch: Batch) -> None:
        shape = (*batch.input_ids.shape, len(batch.predict_at))
        if self._is_fixed and self.shapes and shape not in self.shapes:
            logger.warning("a batch of another shape, %s beside %s: its graphs are compiled now", shape, self.shapes)
        self.shapes.add(shape)

    def _isolation(self, batch: Batch, input_ids: Tensor) -> dict[str, Any]:
        """What keeps each token from seeing more than it may."""
        import torch

        if batch.position_ids is None:
            # For transformers' own attention: all ones take its shortcut to plain causal attention, no mask does not.
            return {} if self._by_sample else {"attention_mask": torch.ones_like(input_ids)}
        positions = {"position_ids": torch.from_numpy(batch.position_ids).to(input_ids.device)}
        if not self._by_sample:
            return positions
        return {**positions, **(self._mask(batch, input_ids) if self._is_fixed else {"sample_lengths": batch.lengths})}

    def _mask(self, batch: Batch, input_ids: Tensor) -> dict[str, Tensor]:
        import torch

        from steps.train.loop.isolation import isolating_mask

        samples = np.stack([sample_numbers(lengths, input_ids.shape[1]) for lengths in batch.lengths])
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        return {"isolation": isolating_mask(torch.from_numpy(samples).to(input_ids.device), dtype)}


def trainable(model: PeftModel) -> dict[str, Tensor]:
    """Parameters that are trained, by name; the same order on every rank."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU, contiguous, cut from the graph; gathers the shards of a sharded one (a collective)."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().to("cpu", copy=True).contiguous()


def adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """The adapter under PEFT's names, on the CPU (a collective when sharded)."""
    from peft import get_peft_model_state_dict

    state = {name: whole(parameter) for name, parameter in trainable(model).items()}
    found: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return found


def write_adapter(folder: Path, model: PeftModel, weights: dict[str, Tensor], *, base_name: str) -> None:
    """PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        OSError: they cannot be written.
    """
    import copy

    from safetensors.torch import save

    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path = base_name
    config.revision = None
    config.inference_mode = True
    config.save_pretrained(folder)
    # Bytes first: safetensors' own file writer hides the errno of a full disk.
    (folder / "adapter_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
