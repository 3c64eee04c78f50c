"""Mean cross-entropy per target token over held-out samples.

Called by `measure` and `handover`. One sample per row, so that nothing sees anything else; logits are computed only from the
first target on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.evaluate.batch import pad, read_prefix, shared_prefix
from steps.evaluate.ways import way_of
from steps.library_versions import cache_argument

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 2048
"""Padded tokens in one forward pass: enough to keep two cores busy, little enough that the logits of a vocabulary of 128,000
stay near half a GiB in bf16."""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of one sample; `labels` repeats them where there is a loss and is IGNORED elsewhere (not shifted)."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str = ""
    """Of a mixture: the source that it is from."""

    @property
    def first_target(self) -> int:
        """Place of the first label with a loss that has a token before it."""
        return next((place for place, label in enumerate(self.labels) if place and label != IGNORED), len(self.labels))


def mean_loss(model: Any, samples: Sequence[Sample], *, on_samples: Callable[[int], None] | None = None) -> float:
    """Nats per target token, all targets weighing the same; NaN when there is none. `on_samples`: see `sums_by_source`."""
    return mean_of(sums_by_source(model, samples, on_samples=on_samples).values())


def mean_of(sums: Iterable[tuple[float, int]]) -> float:
    """The mean over all targets, of summed losses and numbers of targets; NaN when there is none."""
    pairs = list(sums)
    targets = sum(count for _, count in pairs)
    return sum(loss for loss, _ in pairs) / targets if targets else math.nan


def sums_by_source(
    model: Any, samples: Sequence[Sample], *, on_samples: Callable[[int], None] | None = None
) -> dict[str, tuple[float, int]]:
    """Source → (sum of the losses in nats, number of targets). `on_samples` hears how many samples are done."""
    import torch

    usable = [sample for sample in samples if sample.first_target < len(sample.labels)]
    logits_of = _after_prefix if way_of(model, [sample.input_ids for sample in usable]) == "quick" else _in_full
    sums, done = {sample.source: (0.0, 0) for sample in samples}, len(samples) - len(usable)
    with torch.inference_mode():
        for batch in _batches(usable):
            for source, loss, count in _row_sums(logits_of(model, batch), batch):
                sums[source] = sums[source][0] + loss, sums[source][1] + count
            done += len(batch)
            if on_samples:
                on_samples(done)
    return sums


def perplexity(loss: float) -> float:
    """exp(loss), infinite instead of overflowing."""
    return math.inf if loss > 700 else math.exp(loss)


def _batches(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of similar length together, the longest first: if memory does not suffice, it shows at once."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.input_ids)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].input_ids) <= BATCH_TOKENS:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def _row_sums(logits: Tensor, batch: Sequence[Sample]) -> Iterator[tuple[str, float, int]]:
    """(source, sum of the losses, number of targets) of each row.

    `logits` are (rows, places, vocabulary), from the place before the batch's first target on.
    """
    import torch

    first = _first_target(batch)
    for row, sample in enumerate(batch):
        labels = torch.tensor(sample.labels[first:], dtype=torch.long, device=logits.device)
        predicted = logits[row, : len(labels)].float()
        loss = torch.nn.functional.cross_entropy(predicted, labels, ignore_index=IGNORED, reduction="sum")
        yield sample.source, float(loss), int((labels != IGNORED).sum())


def _first_target(batch: Sequence[Sample]) -> int:
    return min(sample.first_target for sample in batch)


def _after_prefix(model: Any, batch: Sequence[Sample]) -> Tensor:
    """For models of `ways`' quick way: the prefix that all rows share is read once, no logits are computed before the targets."""
    import torch

    first = _first_target(batch)
    # The token before the first target has to be read with logits, so the shared prefix ends before it.
    shared = shared_prefix([sample.input_ids for sample in batch], at_most=first - 1)
    cache = read_prefix(model, batch[0].input_ids[:shared], len(batch)) if shared else None
    tokens, own = pad([sample.input_ids[shared:] for sample in batch], side="right", device=model.device)
    logits: Tensor = model(
        input_ids=tokens,
        attention_mask=torch.cat([own.new_ones(len(batch), shared), own], dim=1),
        use_cache=cache is not None,
        logits_to_keep=torch.arange(first - 1 - shared, tokens.shape[1], device=model.device),
        **{cache_argument(model): cache},
    ).logits
    return logits


def _in_full(model: Any, batch: Sequence[Sample]) -> Tensor:
    """For any causal model: whole rows, padded behind their ends."""
    tokens, mask = pad([sample.input_ids for sample in batch], side="right", device=model.device)
    logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, _first_target(batch) - 1 :]
    return logits
