"""An adapter cut as the Neuron libraries cut it is put together again, and never when its copies disagree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.errors import CheckpointError, StorageError
from steps.train.neuron.consolidate import (
    ADAPTER,
    CONFIG,
    SHAPE,
    AdapterShape,
    consolidate,
    consolidate_checkpoint,
    head_order,
    main,
    shard_name,
)

RANK, HEAD, WIDTH = 2, 3, 8
LAYER = "base_model.model.model.layers.0"
Tensors = dict[str, torch.Tensor]


def whole_adapter(heads: int, kv_heads: int, *, fused: bool) -> Tensors:
    """PEFT's tensors; modules that are fused share their lora_A."""
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "self_attn.q_proj": (WIDTH, heads * HEAD), "self_attn.k_proj": (WIDTH, kv_heads * HEAD),
        "self_attn.v_proj": (WIDTH, kv_heads * HEAD), "self_attn.o_proj": (heads * HEAD, WIDTH),
        "mlp.gate_proj": (WIDTH, 16), "mlp.up_proj": (WIDTH, 16), "mlp.down_proj": (16, WIDTH),
    }  # fmt: skip
    found: Tensors = {}
    for module, (inputs, outputs) in sizes.items():
        found[f"{LAYER}.{module}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator)
        found[f"{LAYER}.{module}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator)
    found[f"{LAYER}.mlp.up_proj.lora_A.weight"] = found[f"{LAYER}.mlp.gate_proj.lora_A.weight"]
    for name in ("k_proj", "v_proj") if fused else ():
        found[f"{LAYER}.self_attn.{name}.lora_A.weight"] = found[f"{LAYER}.self_attn.q_proj.lora_A.weight"]
    return found


def by_heads(tensor: torch.Tensor, order: list[int], dim: int) -> torch.Tensor:
    return tensor.unflatten(dim, (-1, HEAD)).index_select(dim, torch.tensor(order)).flatten(dim, dim + 1)


def cut(whole: Tensors, heads: int, kv_heads: int, size: int) -> tuple[list[Tensors], AdapterShape]:
    """What each rank holds."""
    fused = kv_heads < size
    shape = AdapterShape(size, heads, kv_heads, fused, {})
    names: dict[str, tuple[list[torch.Tensor], int | None]] = {}
    attention, mlp = f"{LAYER}.self_attn", f"{LAYER}.mlp"
    gate, up = (whole[f"{mlp}.{name}.lora_B.weight"].chunk(size) for name in ("gate_proj", "up_proj"))
    names[f"{mlp}.gate_up_proj.lora_B.weight"] = ([torch.cat(pair) for pair in zip(gate, up, strict=True)], 0)
    names[f"{mlp}.gate_up_proj.lora_A.weight"] = ([whole[f"{mlp}.gate_proj.lora_A.weight"]] * size, None)
    names[f"{mlp}.down_proj.lora_A.weight"] = (list(whole[f"{mlp}.down_proj.lora_A.weight"].chunk(size, 1)), 1)
    names[f"{mlp}.down_proj.lora_B.weight"] = ([whole[f"{mlp}.down_proj.lora_B.weight"]] * size, None)
    order = head_order(shape) if fused else list(range(heads))
    o_parts = by_heads(whole[f"{attention}.o_proj.lora_A.weight"], order, 1).chunk(size, 1)
    names[f"{attention}.o_proj.lora_A.weight"] = (list(o_parts), 1)
    names[f"{attention}.o_proj.lora_B.weight"] = ([whole[f"{attention}.o_proj.lora_B.weight"]] * size, None)
    for letter in "qkv":
        lora_b = whole[f"{attention}.{letter}_proj.lora_B.weight"]
        lora_b = by_heads(lora_b, order, 0) if letter == "q" else lora_b.repeat(max(1, size // kv_heads), 1)
        module, end = ("qkv_proj", f"_{letter}") if fused else (f"{letter}_proj", "")
        names[f"{attention}.{module}.lora_B.weight{end}"] = (list(lora_b.chunk(size)), 0)
        names[f"{attention}.{module}.lora_A.weight"] = (
            [whole[f"{attention}.{letter}_proj.lora_A.weight"]] * size,
            None,
        )
    dims = {name: dim for name, (_, dim) in names.items()}
    shards = [{name: parts[rank].clone() for name, (parts, _) in names.items()} for rank in range(size)]
    return shards, AdapterShape(size, heads, kv_heads, fused, dims)


LAYOUTS = [(8, 2, 1), (8, 2, 2), (8, 2, 4), (8, 2, 8), (8, 1, 2), (8, 8, 4), (4, 1, 4)]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), LAYOUTS)
def test_cut_and_put_together_is_the_same_adapter(heads: int, kv_heads: int, size: int) -> None:
    whole = whole_adapter(heads, kv_heads, fused=kv_heads < size)
    found = consolidate(*cut(whole, heads, kv_heads, size))
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name


@given(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=40)
def test_replicated_kv_gives_each_rank_the_query_heads_of_its_kv_head(kv: int, copies: int, mine: int) -> None:
    kv_heads, size = 2**kv, 2 ** (kv + copies)
    heads = size * 2**mine
    order = head_order(AdapterShape(size, heads, kv_heads, True, {}))
    assert sorted(order) == list(range(heads))
    per_rank = [order[at : at + 2**mine] for at in range(0, heads, 2**mine)]
    assert [{head // (heads // kv_heads) for head in held} for held in per_rank] == [
        {r % kv_heads} for r in range(size)
    ]


@pytest.mark.parametrize("name", ["mlp.down_proj.lora_B.weight", "self_attn.qkv_proj.lora_B.weight_k"])
def test_copies_that_differ_are_refused(name: str) -> None:
    shards, shape = cut(whole_adapter(8, 2, fused=True), 8, 2, 4)
    shards[3][f"{LAYER}.{name}"][0, 0] += 1
    with pytest.raises(CheckpointError, match=r"differs from copy 0 by up to 1;.*go on from an older checkpoint"):
        consolidate(shards, shape)


def test_a_missing_weight_is_named() -> None:
    shards, shape = cut(whole_adapter(8, 2, fused=False), 8, 2, 2)
    del shards[1][f"{LAYER}.mlp.down_proj.lora_A.weight"]
    with pytest.raises(CheckpointError, match=r"lacks .*down_proj.lora_A.weight"):
        consolidate(shards, shape)


def write_checkpoint(folder: Path, *, stages: int = 1) -> Tensors:
    """Of two tensor-parallel ranks; the weights dealt out over the stages."""
    from safetensors.torch import save_file

    whole = whole_adapter(8, 2, fused=False)
    shards, shape = cut(whole, 8, 2, 2)
    folder.mkdir()
    (folder / SHAPE).write_text(json.dumps(replace(shape, pipeline_parallel=stages).to_dict()))
    (folder / CONFIG).write_text("{}")
    for tp, shard in enumerate(shards):
        for pp in range(stages):
            save_file(dict(list(shard.items())[pp::stages]), folder / shard_name(tp, pp))
    return whole


def test_the_stages_of_a_pipeline_are_put_together(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = write_checkpoint(tmp_path / "checkpoint", stages=2)
    consolidate_checkpoint(tmp_path / "checkpoint", tmp_path)
    found = load_file(tmp_path / ADAPTER)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    (tmp_path / "checkpoint" / shard_name(1, 1)).unlink()
    with pytest.raises(CheckpointError, match=r"has no weights-tp01-pp01\.safetensors: .*rank and stage"):
        consolidate_checkpoint(tmp_path / "checkpoint", tmp_path)


def test_a_shape_that_was_saved_before_there_were_stages_has_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    shape = json.loads((tmp_path / "checkpoint" / SHAPE).read_text())
    del shape["pipeline_parallel"]
    (tmp_path / "checkpoint" / SHAPE).write_text(json.dumps(shape))
    assert AdapterShape.read(tmp_path / "checkpoint").pipeline_parallel == 1


def test_by_hand_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    whole = write_checkpoint(tmp_path / "checkpoint")
    assert main([str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / ADAPTER)
    assert load_file(tmp_path / "out" / ADAPTER).keys() == whole.keys()
    assert (tmp_path / "out" / CONFIG).is_file()


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="best-tp00-pp00"):
        consolidate_checkpoint(tmp_path / "checkpoint", tmp_path, best=True)
    (tmp_path / "checkpoint" / SHAPE).write_text('{"other": 1}')
    with pytest.raises(CheckpointError, match="is no shape of an adapter"):
        consolidate_checkpoint(tmp_path / "checkpoint", tmp_path)
    (tmp_path / "checkpoint" / SHAPE).unlink()
    with pytest.raises(StorageError):
        consolidate_checkpoint(tmp_path / "checkpoint", tmp_path)
