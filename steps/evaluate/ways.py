"""How a model's answers may be generated: the quickest way that says what transformers' `generate` says of each prompt alone.

Asked by `generate` and `loss`. No list of architectures: a model's structure is asked first (its layers, its cache, what its
forward takes), then a probe of a few tokens compares logits. Windows, recurrent states and positions that a model counts by
itself are what makes a batch differ from its rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from steps.evaluate import quick
from steps.evaluate.batch import SHORTEST_PREFIX, pad
from steps.library_versions import cache_argument

if TYPE_CHECKING:
    from torch import Tensor

Way = Literal["quick", "padded", "alike"]
"""quick: `quick`'s steps; padded: `generate` on a batch padded on the left; alike: `generate` on prompts of one length."""

HARMLESS = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
    | {
        "max_length",
        "max_new_tokens",
        "transformers_version",
        "_from_model_config",
        "cache_implementation",
        "use_cache",
    }
    | {"output_attentions", "output_hidden_states", "return_dict_in_generate"}
)
"""Fields of a generation_config that leave the greedy choice as it is. With any other (a penalty, say) `generate` is asked."""
TAILS = (1, 4, 11)
"""Tokens behind the shared beginning, of the probe's rows."""
TOLERANCE = {"torch.float32": 1e-3, "torch.float64": 1e-3}
LOW_PRECISION = 0.25
"""Root mean square of the logits' differences that is still rounding, in standard deviations of the logits."""

_known: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(model: Any, rows: Iterable[Sequence[int]]) -> Way:
    """The way for this model; `rows` lend the probe its tokens. Asked once per model."""
    import torch

    if model not in _known:
        with torch.inference_mode():
            _known[model] = _find_way(model, probe_rows(rows))
    return _known[model]


def _find_way(model: Any, probe: Sequence[Sequence[int]]) -> Way:
    if is_all_full_attention(model) and _agree(model, _quick_logits(model, probe), _plain_logits(model, probe)):
        return "quick"
    probe = [probe[0][:1], *probe]  # recurrent models may take a single token for a step that goes on
    alone = [_generated_logits(model, [row]) for row in probe]
    return (
        "padded"
        if _agree(model, _generated_logits(model, probe), [_joined(step) for step in zip(*alone, strict=True)])
        else "alike"
    )


def is_all_full_attention(model: Any) -> bool:
    """Whether every layer sees all earlier tokens through transformers' plain cache, and nothing but the token's position and
    what it sees decides its logits."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(own.forward).parameters
    config = own.config.get_text_config(decoder=True)
    if not ({"position_ids", "logits_to_keep"} <= takes.keys() and cache_argument(own)):
        return False
    if config.is_encoder_decoder or own._is_stateful or not own._supports_default_dynamic_cache():
        return False
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    if not own.generation_config.to_diff_dict().keys() <= HARMLESS:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def probe_rows(rows: Iterable[Sequence[int]]) -> list[list[int]]:
    """A few short rows of the given rows' tokens, with a common beginning and of different lengths."""
    pool = list(dict.fromkeys(islice(chain.from_iterable(rows), 4096))) or [0]
    tokens = cycle(pool)
    head = list(islice(tokens, SHORTEST_PREFIX))
    return [head + list(islice(tokens, tail)) for tail in TAILS]


def _agree(model: Any, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether logits are equal but for rounding: of the next token and of the one after it, each (rows, vocabulary)."""
    tolerance = TOLERANCE.get(str(model.dtype), LOW_PRECISION)
    return all(
        bool(((ours.float() - theirs.float()).pow(2).mean(-1).sqrt() <= tolerance * theirs.float().std(-1)).all())
        for ours, theirs in zip(found, expected, strict=True)
    )


def _second_token(row: Sequence[int]) -> int:
    """The token that the probe puts behind a row, whatever the model would say."""
    return row[len(row) // 2]


def _quick_logits(model: Any, probe: Sequence[Sequence[int]]) -> list[Tensor]:
    import torch

    state = quick.begin(model, probe)
    first = quick.next_logits(model, state)
    state.append(torch.tensor([_second_token(row) for row in probe], device=model.device))
    return [first, quick.next_logits(model, state)]


def _plain_logits(model: Any, probe: Sequence[Sequence[int]]) -> list[Tensor]:
    """A forward pass for each row alone, without a cache."""
    import torch

    rows = [torch.tensor([[*row, _second_token(row)]], device=model.device) for row in probe]
    logits = [model(input_ids=row, use_cache=False).logits[0] for row in rows]
    return [torch.stack([row[place] for row in logits]) for place in (-2, -1)]


def _generated_logits(model: Any, probe: Sequence[Sequence[int]]) -> list[Tensor]:
    """What `generate` computes for the rows in one batch."""
    tokens, mask = pad(probe, side="left", device=model.device)

    def choose(_: Any, scores: Tensor) -> Tensor:
        chosen = scores.new_full(scores.shape, float("-inf"))
        for place, row in enumerate(probe):
            chosen[place, _second_token(row)] = 0
        return chosen

    found = model.generate(
        tokens,
        attention_mask=mask,
        **greedy(2, frozenset()),
        logits_processor=[choose],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return list(found.logits)


def _joined(rows: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(rows))


def greedy(max_new_tokens: int, ends: frozenset[int]) -> dict[str, Any]:
    """Arguments of `generate` for the most likely token each time."""
    return {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(ends) or None,
        "pad_token_id": 0,
        "do_sample": False,
        "num_beams": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
