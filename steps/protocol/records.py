"""What each stage hands on: small frozen records of paths, digests, counts and parents.

As Metaflow artifacts they are plain dicts (`to_dict`), each with a `schema` field, so that a client without this project can
read them; `from_dict` reads them back and refuses a newer schema. Also `digest_of`, the one way values become an identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

RecordT = TypeVar("RecordT", bound="Record")


def digest_of(value: object) -> str:
    """Hex SHA-256 of the value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identity_of(value: object) -> str:
    """First 12 hex digits of `digest_of`: names a stage's directory."""
    return digest_of(value)[:12]


def digest_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """Base of the records; subclasses add fields and a schema name."""

    SCHEMA: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": self.SCHEMA, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls: type[RecordT], raw: Mapping[str, Any]) -> RecordT:
        """Read back what `to_dict` wrote; keys that a later version of the same schema added are ignored.

        Raises:
            ValueError: another schema, or a missing field.
        """
        if raw.get("schema") != cls.SCHEMA:
            raise ValueError(f"expected a record with schema {cls.SCHEMA!r}, got {raw.get('schema')!r}")
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{key: value for key, value in raw.items() if key in known})
        except TypeError as error:
            raise ValueError(f"incomplete {cls.SCHEMA} record: {error}") from error


@dataclass(frozen=True, slots=True)
class BaseModel(Record):
    """A base model in a local folder of safetensors, tokenizer beside it."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/base-model/1"

    name: str
    path: str
    """Absolute folder; loads with `AutoModelForCausalLM.from_pretrained(path)`, offline."""
    source: str
    """Where it came from: `wheel:…`, `hub:owner/name`, `s3://…`, `file:/…`, `random:…`."""
    revision: str
    """Commit on the hub, or the digest of what it was made from."""
    digest: str
    """Digest of every file's name, size and SHA-256."""
    model_type: str
    parameters: int
    bytes: int
    dtype: str


@dataclass(frozen=True, slots=True)
class PreparedData(Record):
    """Tokenised rows and the order of the whole run, in one directory."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/prepared-data/1"

    path: str
    identity: str
    digest: str
    """Digest of the rows, the order and the held-out samples."""
    fingerprint: str
    """Digest of the source data, independent of row order."""
    source: str
    """File, s3:// address, hub id with revision, or builtin name."""
    shape: str
    score: str
    """Which score evaluation uses: exact_match, json_fields, last_number or rouge_l."""
    samples: int
    """Usable conversations read."""
    train_samples: int
    validation_samples: int
    duplicates: int
    """Conversations left out because the same one came before."""
    skipped: int
    """Source rows that give no sample: without a usable conversation, or too long (`too_long` of them)."""
    truncated_samples: int
    truncated_tokens: int
    rows: int
    """Training rows; with packing each holds several samples."""
    tokens: int
    """Tokens in all training rows, no padding counted."""
    target_tokens: int
    """Those tokens that have a loss (the assistant's)."""
    sequence_length: int
    packed: bool
    fill: float
    """Share of rows × sequence_length that are real tokens, 0..1."""
    steps: int
    """Optimizer steps of the whole run."""
    global_batch: int
    too_long: int = 0
    """Skipped rows whose answer has no token within the sequence length."""
    files: list[str] = field(default_factory=list)
    """SHA-256 and name of each data file, as `sha256sum` prints them; empty for what is no file."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the data: columns and files that were not used, what the template leaves out."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Of a mixture, each source: name, source, weight (0: none), fingerprint, score, train_samples, validation_samples."""
    parents: dict[str, str] = field(default_factory=dict)
    """`base`: digest of the base model whose tokenizer and template were used."""


@dataclass(frozen=True, slots=True)
class Adapter(Record):
    """A trained adapter in PEFT format."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/adapter/1"

    path: str
    identity: str
    digest: str
    method: str
    rank: int
    step: int
    """Optimizer step that it is from."""
    of: int
    """Steps of the whole run."""
    first_loss: float
    last_loss: float
    validation_loss: float | None
    """Lowest or last one seen, as `keep` says; None without validation."""
    attempts: int
    bytes: int
    layout: dict[str, Any] = field(default_factory=dict)
    """backend, world, tp, pp, dp of the last attempt."""
    account: dict[str, Any] = field(default_factory=dict)
    """Where the time went: see `job/account.py`."""
    parents: dict[str, str] = field(default_factory=dict)
    """`base` and `prepared`."""


@dataclass(frozen=True, slots=True)
class MergedModel(Record):
    """Base plus adapter as one transformers folder."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/merged-model/1"

    path: str
    identity: str
    digest: str
    dtype: str
    tensors: int
    merged_tensors: int
    """Tensors that the adapter changed."""
    bytes: int
    seconds: float
    parents: dict[str, str] = field(default_factory=dict)
    """`base` and `adapter`."""


@dataclass(frozen=True, slots=True)
class Report(Record):
    """Base and tuned model on the held-out samples."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/report/1"

    path: str
    identity: str
    digest: str
    score_name: str
    samples: int
    """Held-out samples generated and scored."""
    base_score: float
    """Mean over the samples, 0..1."""
    tuned_score: float
    loss_samples: int
    base_loss: float
    """Mean cross-entropy per target token, nats."""
    tuned_loss: float
    base_perplexity: float
    tuned_perplexity: float
    gate_passed: bool
    gate: str
    """The gate's rule and outcome in words."""
    details: dict[str, Any] = field(default_factory=dict)
    """`words` (exact match 0/32 → 30/32), `counts`, and pairs [base, tuned]: generated_tokens, generate_s, loss_s."""
    parents: dict[str, str] = field(default_factory=dict)
    """`base`, `prepared`, `adapter`, `merged`."""


@dataclass(frozen=True, slots=True)
class Published(Record):
    """A model that was handed on."""

    SCHEMA: ClassVar[str] = "hyperpod-lora/published/1"

    name: str
    digest: str
    """Of the model's files that were handed on, by name and content."""
    what: str
    """`merged`, `adapter` or `both`."""
    files: int
    bytes: int
    addresses: dict[str, str]
    """Where it lies: `s3`, `hub`."""
    run: str
    """The run that published it, `<flow>/<run id>`: an earlier one, if it had equal files."""
    versions: dict[str, str] = field(default_factory=dict)
    """In registries: `mlflow` → name/number, `sagemaker` → ARN."""
    parents: dict[str, str] = field(default_factory=dict)
    """`merged`, `adapter` and `report`."""
