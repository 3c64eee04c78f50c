"""Tiny real models and adapters, made with transformers and PEFT, and PEFT's own merge to compare with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Workshop:
    """Makes folders below `root`."""

    root: Path

    def base(self, name: str, *, dtype: str = "float32", shard: str = "40KB", **sizes: Any) -> Path:
        """A random Llama of two layers, in several shards."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = self.root / name
        if not folder.exists():
            torch.manual_seed(0)
            given = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64} | sizes
            config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **given)
            LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
        return folder

    def adapter(self, base: Path, name: str, *, seed: int = 0, store_as: str = "float32", **lora: Any) -> Path:
        """A PEFT adapter with random weights, as if trained."""
        import torch
        from peft import LoraConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT on tied and saved embeddings; the tests assert what becomes of them
            model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **lora))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.data = (parameter.data + noise).to(getattr(torch, store_as))
        folder = self.root / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        return folder

    def adapter_once(self, base: Path, name: str, **lora: Any) -> Path:
        """The same, made when it is first asked for."""
        folder = self.root / name
        return folder if folder.exists() else self.adapter(base, name, **lora)


def load(folder: Path, dtype: str = "float32") -> Any:
    """The model in a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def adapted(base: Path, adapter: Path, dtype: str = "float32") -> Any:
    """The base with the adapter attached."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base, dtype), adapter)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    """PEFT's own merged weights, in fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(adapted(base, adapter).merge_and_unload().state_dict())


def stored(folder: Path) -> dict[str, Any]:
    """All tensors of a folder's safetensors files."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One place for the session's models."""
    return Workshop(tmp_path_factory.mktemp("models"))
