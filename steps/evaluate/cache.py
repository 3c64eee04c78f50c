"""A cache of keys and values that grows in place: a new token is written behind the others instead of copying all of them.

Used by `batch` for the quick way. transformers' own joins old and new at every step and layer, which on a CPU takes a fifth of a
generation step, and more the longer the answers are; and it copies all rows that go on where one has ended. Imports transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 64
"""Places that are made at a time."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, each (rows, heads, places, size): views of two stores that may have more rows and places."""

    _stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, these new ones included."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._stores is None or end > self._stores[0].shape[-2]:
            old = (self.keys, self.values) if begin else (None, None)
            self._stores = _store(key_states, end, old[0]), _store(value_states, end, old[1])
        rows = key_states.shape[0]
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[:rows, :, begin:end] = new
        self._show(rows, end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        if self._stores is not None:
            keys, values = self._stores
            self._stores = keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0)
            self._show(len(self.keys) * repeats, self.get_seq_length())

    def keep(self, rows: int, holes: Tensor, movers: Tensor) -> None:
        """Only the first `rows` rows, once those at `movers` have been copied to `holes`."""
        self.keys[holes], self.values[holes] = self.keys[movers], self.values[movers]
        self._show(rows, self.get_seq_length())

    def _show(self, rows: int, places: int) -> None:
        if self._stores is not None:
            self.keys, self.values = (store[:rows, :, :places] for store in self._stores)
            self.is_initialized, self.dtype, self.device = True, self.keys.dtype, self.keys.device


def _store(new: Tensor, places: int, old: Tensor | None) -> Tensor:
    """Room for these places and more, with what is there already."""
    rows, heads, _, size = new.shape
    store = new.new_empty(rows, heads, places + ROOM, size)
    if old is not None:
        store[:, :, : old.shape[-2]] = old
    return store


def growing_cache(model: Any) -> DynamicCache:
    """An empty one, for a model all of whose layers see all earlier tokens (`ways.is_all_full_attention`)."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache
