"""Answers imports of the Neuron SDK's closed packages, so that optimum-neuron and neuronx-distributed load on a CPU.

For tests only. Python imports this by itself when its folder is on PYTHONPATH. What it answers with does nothing; `neuron_cpu`
carries the collectives. optimum-neuron, neuronx-distributed, torch_xla, transformers and peft stay the real ones.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

CLOSED = ("neuronxcc", "torch_neuronx", "libneuronxla", "nki", "neuronxlogger")
VERSIONS = {"torch_neuronx": "2.8.0.2.10.16998", "neuronxcc": "2.21.33363.0", "libneuronxla": "2.2.12677.0"}
"""Of the Neuron SDK 2.26.1: the libraries look at them."""


class Nothing:
    """Can be called, indexed, multiplied and inherited from; as a decorator it gives back what it decorates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __getitem__(self, key: Any) -> Any:
        return Nothing()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (object,)

    def __index__(self) -> int:
        return 128

    __int__ = __index__

    def __mul__(self, other: Any) -> int:
        return 128

    __rmul__ = __add__ = __radd__ = __sub__ = __floordiv__ = __mul__
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class ClosedModule(types.ModuleType):
    """Has every attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        found = Nothing()
        setattr(self, name, found)
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Of the closed packages, and of neuronx_distributed.trace, which needs them for inference."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.startswith("libneuronxla.libneuronpjrt"):
            return None
        if name.split(".")[0] in CLOSED or name.startswith("neuronx_distributed.trace"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = ClosedModule(spec.name)
        module.__path__ = ["/nonexistent"]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ in VERSIONS:
            module.__version__ = VERSIONS[module.__name__]  # type: ignore[attr-defined]
        if module.__name__ in ("torch_neuronx.utils", "torch_neuronx.utils.utils"):
            module.get_platform_target = lambda: "trn1"  # type: ignore[attr-defined]
            module.SUPPORTED_TYPES = ["trn1", "trn2", "inf2"]  # type: ignore[attr-defined]


sys.meta_path.insert(0, Finder())
