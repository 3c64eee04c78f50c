"""Everything of Metaflow's internals that this project touches, in one place, with a test of its own.

Public Metaflow API is used elsewhere as it is. What is here may break with a new Metaflow version:
`tests/flow/test_metaflow_internals.py` fails then, and only this file changes.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaflow import current
from metaflow._vendor.click import NoSuchOption
from metaflow.exception import METAFLOW_EXIT_DISALLOW_RETRY
from metaflow.util import get_username

from steps.errors import LoraFlowError
from steps.flow.terminal import say
from steps.library_versions import without_bars
from steps.machine import quiet_threads
from steps.settings.options import OPTIONS
from steps.settings.places import INSTALLED

if TYPE_CHECKING:
    from steps.preflight.cloud import Datastore
    from steps.protocol.rundir import RunDir

EXIT_NO_RETRY: int = METAFLOW_EXIT_DISALLOW_RETRY
"""A task that exits with this code is not retried by a local run, whatever @retry says."""
CONFIG_GIVEN = "HYPERPOD_LORA_CONFIG_GIVEN"
"""Environment variable with the path of the config, for the step processes of a local run."""
SOURCE_SUFFIXES = (".py", ".yaml", ".json", ".html", ".css")
PACKAGE_INFO = ".mf_meta/INFO"
"""In an unpacked code package: JSON with what Metaflow knew where it was made."""
LARGE_ARCHIVE = 64 * 2**20
"""Metaflow's own code and ours are 2 MiB; more is something that lies beside the flow by mistake."""


def set_current(name: str, value: Any) -> None:
    """Make `current.<name>` available in the step that runs now, as @torchrun does with `current.torch`."""
    current._update_env({name: value})


def name_user() -> None:
    """Tell Metaflow who runs this where it cannot know: in a bare container there is no USER, and it takes no `root`."""
    if get_username() is None:
        account = getpass.getuser()
        os.environ["USERNAME"] = "local" if account == "root" else account


def archive(run: RunDir) -> tuple[Path, str]:
    """This run's Metaflow code package as a file on the shared file system, and its SHA-256.

    Whoever unpacks it runs the code of this very step, and needs no object storage for it.

    Raises:
        StorageError: full or read-only disk, no permission.
    """
    from steps.protocol.rundir import write_atomic

    data = _package()
    digest = hashlib.sha256(data).hexdigest()
    path = run.path / "code" / f"{digest[:16]}.tgz"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        write_atomic(path, data)
    if len(data) > LARGE_ARCHIVE:
        say(f"the code package has {len(data) / 2**20:,.0f} MiB, and every pod unpacks it: what lies beside the flow?")
    return path, digest


def _package() -> bytes:
    """The code package's bytes: in Metaflow's pods what the pod itself runs, elsewhere made from the sources here."""
    from metaflow.system_context import system_context

    key = os.environ.get("METAFLOW_CODE_SHA", "")
    if key and "METAFLOW_KUBERNETES_WORKLOAD" in os.environ:
        ((_, data),) = system_context.flow_datastore.load_data([key], force_raw=True)
        return bytes(data)
    from metaflow.package import MetaflowPackage

    made = MetaflowPackage(system_context.flow, system_context.environment, echo=lambda *_, **__: None)
    return bytes(made.blob)


def metaflow_datastore(kind: str = "") -> Datastore:
    """Metaflow's datastore as this process is configured; `kind` of the running flow, where there is one."""
    from metaflow import metaflow_config

    from steps.preflight.cloud import Datastore

    kind = kind or str(metaflow_config.DEFAULT_DATASTORE)
    root = getattr(metaflow_config, f"DATASTORE_SYSROOT_{kind.upper()}", None)
    return Datastore(kind, str(root or ""), str(metaflow_config.S3_ENDPOINT_URL or "") if kind == "s3" else "")


def is_in_pod() -> bool:
    """Whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def config_first(words: list[str]) -> list[str]:
    """`--config FILE`, anywhere in a command, as Metaflow wants it: before the command, with the Config's name."""
    for place, word in enumerate(words):
        if word.startswith("--config="):
            return ["--config", "config", word.partition("=")[2], *words[:place], *words[place + 1 :]]
        if word == "--config" and words[place + 1 : place + 2] not in ([], ["config"]):
            return ["--config", "config", words[place + 1], *words[:place], *words[place + 2 :]]
    return words


def run_command_line(flow: Callable[[], object]) -> None:
    """Run a flow's own command; an option that does not exist is answered with the nearest one of ours as well."""
    quiet_threads(os.environ)
    without_bars(os.environ)
    sys.argv[1:] = _complete(config_first(sys.argv[1:]))
    name_user()
    try:
        flow()
    except SystemExit as end:
        if isinstance(end.__context__, NoSuchOption):
            from steps.settings.section import suggest

            given = str(end.__context__.option_name)
            known = [f"--{name.replace('_', '-')}" for name in OPTIONS]
            print(f"{given}: unknown{suggest(given, known)}; `run --help` shows all", file=sys.stderr)
        raise


def _complete(words: list[str]) -> list[str]:
    """With the options of the run that --continue-from names; the config's path is left for this run's own processes."""
    if any(word.partition("=")[0] == "--continue-from" for word in words):
        from steps.flow.continuing import complete_words

        try:
            words = complete_words(words)
        except LoraFlowError as error:
            sys.exit(f"{error.headline}: {error}")
    if "run" in words and "--config" in words[:-2]:
        os.environ[CONFIG_GIVEN] = str(Path(words[words.index("--config") + 2]).resolve())
    return words


def given_config() -> str:
    """The path of this run's config, as far as this process knows it; a pod does not."""
    return os.environ.get(CONFIG_GIVEN, "")


def code_version(root: Path) -> dict[str, str]:
    """Which code this is: `digest` of the sources that Metaflow packages, and git's `commit` where there is one.

    An installed package lies among others, and its environment may lie in somebody's repository: its folder alone is looked at.
    `commit` ends in `+changes` when tracked files differ from it. Both are facts for the lineage, nothing depends on them.
    """
    version = {"digest": sources_digest(root)}
    if _is_installed(root):
        return version
    commit = _packaged_commit(root) if (root / PACKAGE_INFO).is_file() else _commit(root)
    if commit:
        version["commit"] = commit
    return version


def _commit(root: Path) -> str:
    commit = _git(root, "rev-parse", "HEAD")
    changed = commit and _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def _packaged_commit(root: Path) -> str:
    """The commit that an unpacked code package was made from, as Metaflow noted it."""
    told = json.loads((root / PACKAGE_INFO).read_text(encoding="utf-8"))
    commit = str(told.get("commit_sha") or "")
    return f"{commit}+changes" if commit and told.get("has_uncommitted_changes") else commit


def sources_digest(root: Path) -> str:
    """Hex SHA-256 over names and contents of all sources below steps/, flows/ and config/: the same in an unpacked package."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources(root)):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(root: Path) -> Iterable[tuple[str, Path]]:
    """Each source with its name in the checkout; a code package has what lies in flows/ at its root."""
    folders = ("steps",) if _is_installed(root) else ("steps", "config", "flows")
    found = [path for folder in folders for path in (root / folder).rglob("*")]
    for path in found:
        if path.suffix in SOURCE_SUFFIXES and path.is_file():
            yield str(path.relative_to(root)), path
    if not _is_installed(root) and not (root / "flows").is_dir():
        yield from ((f"flows/{path.name}", path) for path in root.glob("*.py"))


def _is_installed(root: Path) -> bool:
    """An installed package's steps/ has config/ and flows/ inside; what lies beside it is not ours."""
    return (root / "steps" / INSTALLED.name).is_dir()


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def pathspec() -> str:
    """`<flow>/<run id>` of the run that this step belongs to."""
    return f"{current.flow_name}/{current.run_id}"


def flow_id() -> str:
    """Run id of the flow that this step belongs to; empty outside of one."""
    return str(current.run_id or "")


def tag_run(tags: Iterable[str], *, instead_of: Sequence[str] = ()) -> None:
    """Add tags to the run that this step belongs to, and those that a person gave the run which it resumes.

    `instead_of`: tags that begin with one of these are taken away, unless they are given anew. In a pod without a metadata
    service nobody keeps the run's record: the tags are then told, not kept.
    """
    from metaflow import Run
    from metaflow.exception import MetaflowNotFound

    given = list(tags)
    try:
        run = Run(pathspec(), _namespace_check=False)
    except MetaflowNotFound:
        say(f"not tagged, since no metadata service keeps the record of {pathspec()}: {', '.join(given)}")
        return
    kept = run.user_tags | _tags_of_origin()
    former = [tag for tag in kept if tag.startswith(tuple(instead_of)) and tag not in given]
    run.replace_tags([tag for tag in former if tag in run.user_tags], [*given, *(kept - set(former))])


def _tags_of_origin() -> frozenset[str]:
    """What people have tagged the resumed run with; Metaflow starts a resumed run without."""
    from metaflow import Run
    from metaflow.exception import MetaflowNotFound

    if not current.origin_run_id:
        return frozenset()
    try:
        return frozenset(Run(f"{current.flow_name}/{current.origin_run_id}", _namespace_check=False).user_tags)
    except MetaflowNotFound:
        return frozenset()


def kept_lineage(run: str) -> dict[str, Any] | None:
    """The lineage that Metaflow's records hold for a run (`Flow/run id`), wherever its files are; None where there is none."""
    from metaflow import Run
    from metaflow.exception import MetaflowException

    for step in ("evaluate", "merge"):
        try:
            return dict(Run(run, _namespace_check=False)[step].task.data.lineage)
        except (MetaflowException, KeyError, AttributeError):  # no such run, step not reached, or without its artifact
            continue
    return None


def lacks_cards() -> bool:
    """In a pod without a metadata service Metaflow does not find the task whose card it draws, if a laptop numbered the run."""
    from metaflow import get_metadata

    is_pod = "METAFLOW_KUBERNETES_WORKLOAD" in os.environ
    return is_pod and get_metadata().startswith("local@") and str(current.run_id).isdigit()
