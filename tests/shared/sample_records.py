"""A plan and the records of its stages, made up, for tests of what is drawn and told from them."""

from __future__ import annotations

from typing import Any

from steps.protocol.records import Adapter, BaseModel, PreparedData, Report
from steps.settings.config import Settings, parse_options, parse_settings
from steps.settings.plan import Plan
from steps.settings.resolve import resolve

BASE = BaseModel("tiny", "/models/tiny", "random:tiny", "r1", "b" * 64, "llama", 1000, 4000, "fp32")
ADAPTER = Adapter("/run/adapter", "id1", "a" * 64, "lora", 4, 30, 30, 3.5, 0.5, None, 1, 800)
REPORT = Report(
    path="/run/evaluation",
    identity="id2",
    digest="e" * 64,
    score_name="exact match",
    samples=32,
    base_score=0.0,
    tuned_score=0.9375,
    loss_samples=64,
    base_loss=3.0,
    tuned_loss=0.25,
    base_perplexity=20.1,
    tuned_perplexity=1.28,
    gate_passed=True,
    gate="tuned 0.938 >= base 0.000 + 0: passed",
)


def plan_of(settings: dict[str, Any] | None = None, **options: Any) -> Plan:
    chosen = parse_settings(settings) if settings else Settings()
    return resolve(chosen, parse_options({"model": "tiny", "dataset": "orders", **options}))


def prepared_of(**changes: Any) -> PreparedData:
    given: dict[str, Any] = {
        "path": "/run/prepared",
        "identity": "id0",
        "digest": "d" * 64,
        "fingerprint": "f" * 64,
        "source": "builtin:orders",
        "shape": "prompt_completion",
        "rows": 100,
        "tokens": 10_000,
        "steps": 30,
        "global_batch": 8,
        "train_samples": 1200,
        "validation_samples": 120,
        "packed": False,
    }
    fields = {item: 0 for item in PreparedData.__dataclass_fields__ if item != "SCHEMA"}
    return PreparedData(**{**fields, "parents": {}, "files": [], "notes": [], "score": "auto", **given, **changes})
