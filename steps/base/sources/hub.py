"""A model on the Hugging Face hub: its config, and its files brought into a folder.

Called by `stage` through `sources`. The token is found by the hub's own library (HF_TOKEN or its cache file) and never read
here. Whatever goes wrong fails within seconds, with what to do; a download that stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.base.inspect import inspect, is_model_file
from steps.base.progress import Room, Say, watched
from steps.errors import ModelError
from steps.library_versions import hub_transport_errors

TIMEOUT_S = 10.0
"""Of each question to the hub: long enough for a slow line, short enough that nobody wonders."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub id at a revision."""

    repository: str
    revision: str
    hint: str = ""
    """Added to a failure: what else would have served."""

    @property
    def label(self) -> str:
        """As in BaseModel.source."""
        return f"hub:{self.repository}"

    @property
    def key(self) -> dict[str, str]:
        """What names the cached copy."""
        return {"hub": self.repository, "revision": self.revision}

    def in_place(self) -> Path | None:
        """The hub library's own cached copy, if it is whole."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(self.repository, revision=self.revision, local_files_only=True))
            inspect(folder)
        except (LocalEntryNotFoundError, ModelError):
            return None
        return folder

    def describe(self, scratch: Path) -> dict[str, Any]:
        """config.json alone; it stays in `scratch`, where `fill` finds it."""
        from huggingface_hub import hf_hub_download

        commit = self._info().sha  # asked first: it fails at once, where the download would try again and again
        with self._errors():
            path = hf_hub_download(
                self.repository, "config.json", revision=commit, local_dir=scratch, etag_timeout=TIMEOUT_S
            )
        config: dict[str, Any] = json.loads(Path(path).read_bytes())
        return config

    def fill(self, folder: Path, *, room: Room, say: Say) -> str:
        """Download what is not there yet and return the commit."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        info = self._info()
        sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
        wanted = [name for name in sizes if "/" not in name and is_model_file(name)]
        total = sum(sizes[name] for name in wanted)
        room(total)
        disable_progress_bars()  # theirs would fill the step's log; ours is `say`
        with self._errors(), watched(folder, total, say, f"fetching {self.repository}, bytes"):
            snapshot_download(
                self.repository,
                revision=info.sha,
                local_dir=folder,
                allow_patterns=wanted,
                etag_timeout=TIMEOUT_S,
            )
        return str(info.sha)

    def _info(self) -> Any:
        from huggingface_hub import HfApi

        with self._errors():
            return HfApi().model_info(self.repository, revision=self.revision, files_metadata=True, timeout=TIMEOUT_S)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """The hub's exceptions as ModelError; of their texts nothing passes, since they quote requests."""
        from huggingface_hub import errors

        offline = f"or give a local folder as --model, or an s3:// prefix{self.hint}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{self.repository} is gated: accept its licence at https://huggingface.co/{self.repository}, then set "
                f"HF_TOKEN (or run `hf auth login`); {offline}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(
                f"{self.repository} has no revision {self.revision!r}: check the preset's revision"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"the hub has no model {self.repository}, or this user may not see it: check the name, set HF_TOKEN if it "
                f"is private; {offline}"
            ) from error
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise self._unreachable(error, offline) from error
            raise ModelError(f"{self.repository} has no config.json: it is no transformers model") from error
        except hub_transport_errors() as error:
            raise self._unreachable(error, offline) from error

    def _unreachable(self, error: BaseException, offline: str) -> ModelError:
        from huggingface_hub import constants

        why = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} cannot be used ({type(error).__name__})"
        )
        return ModelError(
            f"{self.repository} is not on this machine and the hub is out of reach: {why}; connect, {offline}"
        )
