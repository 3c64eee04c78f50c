"""What this machine can do: cores that are really ours, whether bf16 is fast, and how threads wait. Loads no library.

Read by entry points before numpy or torch are imported, and by `start` for `--precision auto`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""The drivers of NVIDIA and AMD make one of these; without either, torch need not be asked."""
FAST_BF16 = frozenset({"amx_bf16", "avx512_bf16"})
"""Processor features with a bf16 product. Without one, torch computes bf16 in a plain loop: a training step took 27 times as long
as in fp32, the backward of an output layer 200 times (AMD EPYC of the third generation)."""
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP's threads sleep between products instead of spinning. Spinning ones take the cores from each other as soon as anything
else runs: 10 to 100 times slower on a busy machine, a few percent faster on an idle one (`python -m bench threads`)."""


def cores() -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container where that is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUP)
    return max(1, min(allowed, int(quota + 0.5))) if quota else allowed


def threads_of(asked: int, processes: int) -> int:
    """CPU threads of each of so many processes here: as asked, or an equal share of the cores, at least 1. `asked` 0: not."""
    return asked or max(1, cores() // processes)


def cpu_quota(root: Path) -> float | None:
    """Cores of the CPU quota at a cgroup's mount (version 2, else 1); None: unlimited or unknown."""
    try:
        if (root / "cpu.max").is_file():
            limit, period = (root / "cpu.max").read_text().split()
        else:
            limit, period = (
                (root / "cpu" / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return int(limit) / int(period) if limit != "max" and int(limit) > 0 else None
    except (OSError, ValueError):
        return None


def processor_features(cpuinfo: str) -> frozenset[str]:
    """The features that /proc/cpuinfo lists (`flags` on x86, `Features` on ARM)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_has_fast_bf16(features: Iterable[str]) -> bool:
    """Whether a product in bf16 is about as fast as in fp32, or faster."""
    return not FAST_BF16.isdisjoint(features)


def has_fast_bf16() -> bool:
    """The same of the device that torch would use on this machine: its GPU, else its processor."""
    if any(path.exists() for path in GPU_FILES):
        import torch

        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return processor_has_fast_bf16()


def processor_has_fast_bf16() -> bool:
    """The same of its processor."""
    try:
        return cpu_has_fast_bf16(processor_features(CPUINFO.read_text()))
    except OSError:  # no Linux
        return False


def free_memory(meminfo: Path = MEMINFO, root: Path = CGROUP) -> int | None:
    """Bytes that this process and others here can still take, its container's limit included; None: not known."""
    try:
        lines = (line.split() for line in meminfo.read_text().splitlines())
        available = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
    except (OSError, ValueError, IndexError):  # no Linux
        return None
    limited = _free_of_limit(root)
    return limited if available is None else available if limited is None else min(available, limited)


def _free_of_limit(root: Path) -> int | None:
    """Of the memory limit at a cgroup's mount (version 2, else 1), what no one holds; files that were read count as free."""
    names = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    if not (root / names[0]).is_file():
        root, names = (
            root / "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
        )
    try:
        limit, used, stat = ((root / name).read_text().strip() for name in names[:3])
        counts = dict(line.split() for line in stat.splitlines())
        return None if limit == "max" else max(0, int(limit) - int(used) + int(counts.get(names[3], 0)))
    except (OSError, ValueError):
        return None


def quiet_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait. To be called before torch is imported; what a person has set stays."""
    if "GOMP_SPINCOUNT" not in environment and "KMP_BLOCKTIME" not in environment:
        for name, value in QUIET_THREADS.items():
            environment.setdefault(name, value)
