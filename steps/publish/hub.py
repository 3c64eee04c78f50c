"""A private repository on the Hugging Face hub: one commit that holds all files and no others, then a tag with the digest.

A commit is seen whole or not at all; large files that were brought before it was made are there for the next try. The tag names
the publication: where it is there, nothing is done. The token is found by the hub's own library and never read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steps.errors import StorageError
from steps.library_versions import hub_transport_errors
from steps.publish.contents import Contents

HUB_OWN = frozenset({".gitattributes"})
"""Files of a repository that are the hub's."""


def publish(repository: str, contents: Contents, *, message: str, api: Any = None) -> str:
    """Bring the contents to the repository, which is made if there is none; `owner/name@tag`.

    Raises:
        StorageError: the repository is public, or the hub refused or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # theirs would fill the step's log
    hub, tag = api or HfApi(), contents.identity
    with hub_errors(repository):
        hub.create_repo(repository, private=True, exist_ok=True)
        there = hub.model_info(repository)
        if not there.private:
            raise StorageError(f"{repository} is public: nothing was brought there; make it private, or name another")
        if tag not in {item.name for item in hub.list_repo_refs(repository).tags}:
            files = files_of(contents)
            former = {item.rfilename for item in there.siblings or ()} - set(files) - HUB_OWN
            changes: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            changes += [CommitOperationDelete(name) for name in sorted(former)]
            commit = hub.create_commit(repository, changes, commit_message=message, parent_commit=there.sha)
            hub.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    return f"{repository}@{tag}"


def files_of(contents: Contents) -> Mapping[str, Path]:
    """Place in the repository → file. The merged model lies at the top, where transformers looks; so does an adapter alone."""
    every = [*contents.files, *contents.about]
    top = "merged/" if any(file.name.startswith("merged/") for file in every) else "adapter/"
    return {file.name.removeprefix(top): file.path for file in every}


@contextlib.contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """The hub's exceptions as StorageError; of their texts nothing passes, since they quote requests."""
    failures: tuple[type[Exception], ...] = (*hub_transport_errors(), RuntimeError, ValueError)
    try:
        yield
    except failures as error:
        raise StorageError(f"the hub: {repository}: {words_of(error)}") from error


def words_of(error: BaseException) -> str:
    """What a person can do about it."""
    status = status_of(error)
    if status in (401, 403, 404):
        return f"refused ({status}): set HF_TOKEN to a token that may write there, and look at the name"
    if status in (409, 412):
        return f"somebody else wrote there at the same time ({status}): `resume` tries again"
    if status:
        return f"answered {status} ({type(error).__name__}); `resume` tries again"
    return f"cannot be used ({type(error).__name__}); check the network and HF_ENDPOINT, then `resume`"


def status_of(error: BaseException | None) -> int:
    """The status of the answer that an error, or what led to it, is about; 0: there was none."""
    while error is not None:
        answer = getattr(error, "response", None)
        if answer is not None:
            return int(getattr(answer, "status_code", 0))
        error = error.__cause__
    return 0
