"""The environment of a Neuron pod, by instance type. Pure. Whoever writes the manifest or starts torchrun puts it there.

It has to be set before the process starts: optimum-neuron sets some of it too late for its own process (MALLOC_ARENA_MAX, the
rounding mode). Each value with its reason; the names and defaults are of the Neuron SDK 2.26.
"""

from __future__ import annotations

LOCAL_CACHE = "/var/tmp/neuron-compile-cache"
"""Compiled graphs on the node's own disk: the compiler's locks break on shared file systems. See `neuron_cache`."""

EVERYWHERE = {
    "NEURON_RT_LOG_LEVEL": "WARNING",
    # glibc's arenas let the host run out of memory at checkpoints.
    "MALLOC_ARENA_MAX": "64",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Of both stacks."""
# Fork-safe mode is for kernels before 5.15; newer ones ignore it.
BETWEEN_NODES = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1"}
"""EFA."""


def neuron_environment(*, nodes: int, longest_step_s: int = 600, compile_cache: str = LOCAL_CACHE) -> dict[str, str]:
    """Variables of every process. `compile_cache`: a folder on the node, or an s3:// prefix."""
    found = {
        # The helpers of optimum-neuron cut a --cache_dir in the flags at its first dot, so the cache has its own variable.
        "NEURON_COMPILE_CACHE_URL": compile_cache,
        # A failed compilation is cached as well, and would fail every later attempt at once.
        "NEURON_CC_FLAGS": "--model-type=transformer --retry_failed_compilation",
        "NEURON_FUSE_SOFTMAX": "1",  # of the XLA stack alone, as NEURON_COMPILE_CACHE_URL is
        # Runs of the device ahead of the host; 0 by default. Runtimes from 2.34 (SDK 2.32) have it no more, and warn.
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "3",
        "NEURON_RT_STOCHASTIC_ROUNDING_EN": "1",
        "NEURON_RT_STOCHASTIC_ROUNDING_SEED": "0",
        # 30 s by default, which a first step of a long sequence can pass.
        "NEURON_RT_EXEC_TIMEOUT": str(longest_step_s),
        **EVERYWHERE,
    }
    if nodes > 1:
        found |= BETWEEN_NODES
    return found
