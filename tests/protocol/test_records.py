"""Records as plain dicts and back."""

from __future__ import annotations

import json

import pytest

from steps.protocol.records import BaseModel, Record
from tests.shared.sample_records import ADAPTER, BASE, REPORT, prepared_of


@pytest.mark.parametrize("record", [BASE, ADAPTER, REPORT, prepared_of()], ids=lambda record: type(record).__name__)
def test_a_record_is_read_back_from_plain_json(record: Record) -> None:
    raw = json.loads(json.dumps(record.to_dict()))
    assert type(record).from_dict(raw) == record
    assert type(record).from_dict({**raw, "added_later": 1}) == record


def test_another_schema_and_a_missing_field_are_named() -> None:
    raw = BASE.to_dict()
    with pytest.raises(ValueError, match=r"expected a record with schema 'hyperpod-lora/base-model/1', got 'x/2'"):
        BaseModel.from_dict({**raw, "schema": "x/2"})
    with pytest.raises(ValueError, match=r"incomplete hyperpod-lora/base-model/1 record: .*'digest'"):
        BaseModel.from_dict({key: value for key, value in raw.items() if key != "digest"})
