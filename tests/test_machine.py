from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steps import machine
from steps.machine import (
    QUIET_THREADS,
    cores,
    cpu_has_fast_bf16,
    cpu_quota,
    free_memory,
    processor_features,
    quiet_threads,
)
from steps.settings.catalog import ModelPreset
from steps.settings.config import parse_options, parse_settings
from steps.settings.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]
ZEN3 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 fma\npower management:\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "fast"), [(ZEN3, False), (SAPPHIRE_RAPIDS, True), (GRAVITON, False), ("", False)], ids=str
)
def test_bf16_is_fast_where_the_processor_has_a_product_for_it(cpuinfo: str, fast: bool) -> None:
    assert cpu_has_fast_bf16(processor_features(cpuinfo)) is fast


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
    ids=["v2", "v2 without limit", "v1", "v1 without limit", "unreadable", "no cgroup"],
)
def test_the_cpu_quota_of_a_container_is_read(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 2048),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "anon 1"}, 2048),
        ({"memory.max": "1500", "memory.current": "900", "memory.stat": "anon 1\ninactive_file 300"}, 900),
        (
            {"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "900", "memory/memory.stat": "x 1"},
            0,
        ),
        ({"memory.max": "nonsense", "memory.current": "0", "memory.stat": ""}, 2048),
    ],
    ids=["no cgroup", "no limit", "v2", "v1, full", "unreadable"],
)
def test_free_memory_is_what_machine_and_container_allow(tmp_path: Path, files: dict[str, str], free: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4 kB\nMemAvailable: 2 kB\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(meminfo, tmp_path) == free


def test_free_memory_is_not_known_where_nothing_tells_it(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "meminfo", tmp_path) is None
    (tmp_path / "meminfo").write_text("MemAvailable: much kB")
    assert free_memory(tmp_path / "meminfo", tmp_path) is None


def test_cores_follow_the_quota_and_never_fall_below_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.machine.CGROUP", tmp_path)
    allowed = len(os.sched_getaffinity(0))
    assert cores() == allowed
    (tmp_path / "cpu.max").write_text("20000 100000")
    assert cores() == 1
    (tmp_path / "cpu.max").write_text("6400000 100000")
    assert cores() == allowed


def test_threads_sleep_while_they_wait_unless_a_person_has_said_otherwise() -> None:
    fresh: dict[str, str] = {}
    quiet_threads(fresh)
    assert fresh == QUIET_THREADS
    for own in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "1"}):
        kept = dict(own)
        quiet_threads(kept)
        assert kept == own


@pytest.mark.parametrize(
    ("settings", "options", "fast_bf16", "precision", "words"),
    [
        ({}, {}, True, "bf16", ""),
        ({}, {}, False, "fp32", "no fast bf16"),
        ({}, {"precision": "bf16"}, False, "bf16", "27 times"),
        ({}, {"precision": "fp32"}, True, "fp32", ""),
        ({"launcher": {"backend": "neuron"}}, {}, False, "bf16", ""),
    ],
)
def test_auto_is_bf16_only_where_the_device_is_fast_at_it(
    settings: dict[str, object], options: dict[str, str], fast_bf16: bool, precision: str, words: str
) -> None:
    given = {"model": "smollm2-135m", **options}
    plan = resolve(parse_settings(settings), parse_options(given), fast_bf16=fast_bf16)
    assert plan.training.precision == precision
    assert words in plan.precision_reason
    assert bool(words) == bool(plan.precision_reason)


def test_a_preset_leaves_the_precision_open() -> None:
    assert ModelPreset().precision == "auto"


BLAS_THREADS = """
import json
import numpy
from threadpoolctl import threadpool_info
from steps.fork_pool import fork_pool
def start(): pass
def threads(): return [pool["num_threads"] for pool in threadpool_info()]
numpy.ones((64, 64)) @ numpy.ones((64, 64))
with fork_pool(1, start) as pool:
    print(json.dumps(pool.submit(threads).result()))
"""


def test_a_forked_process_computes_with_one_thread() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", BLAS_THREADS], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.strip("[]\n").split(", ")) == {"1"}


def test_threads_are_as_asked_or_an_equal_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert [machine.threads_of(asked, 3) for asked in (0, 5)] == [2, 5]
    assert machine.threads_of(0, 16) == 1
