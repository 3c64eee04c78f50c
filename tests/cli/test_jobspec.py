"""The printed manifest: complete without a cluster, and by hand the very job that the flow would submit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from steps.cli.main import main
from steps.cli.view.manifest_text import archive_sources, by_hand, text_of
from steps.errors import ConfigError, StorageError
from steps.flow import launchers
from steps.flow.training import Inputs, read_inputs
from steps.job import history as memory
from steps.job.agent.agent import DETACHED
from steps.job.history import Attempt, Verdict
from steps.protocol.prepared import DATA_FILES, MANIFEST, digest_files, sealed
from steps.protocol.records import digest_of
from steps.protocol.rundir import RunDir, held_lock, read_json, write_json
from steps.pytorchjob import manifest as pytorchjob
from tests.shared.sample_records import BASE, plan_of, prepared_of

SCHEMA = Path(__file__).parents[1] / "pytorchjob" / "pytorchjob-1.7.0.json"
"""The operator's own."""
CLUSTER = {"namespace": "ns", "image": "registry/image:1", "nodes": 2, "token_secret": "hub", "run_as_user": 0}


def call(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["jobspec", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def make_inputs(run: RunDir, **options: Any) -> Inputs:
    """A prepared run on a cluster, its files made up."""
    root = run.path.parents[1]
    settings = {
        "storage": {"root": str(root), "cache": str(root / "cache")},
        "launcher": {"kind": "pytorchjob"},
        "cluster": {**CLUSTER, "mount_path": str(root)},
    }
    folder = run.path / "prepared-x"
    folder.mkdir(parents=True)
    for name in DATA_FILES:
        (folder / name).write_text(name)
    files = digest_files(folder)
    plan = plan_of(settings, global_batch=8, max_steps=30, **options)
    record = prepared_of(
        path=str(folder),
        digest=digest_of(files),
        packed=plan.packing,
        sequence_length=plan.sequence_length,
        global_batch=8,
    )
    write_json(folder / MANIFEST, sealed({"record": record.to_dict(), "files": files}))
    inputs = Inputs(plan, BASE, record)
    inputs.save(run)
    return inputs


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "LoraFlow" / "17")


def test_it_is_printed_without_a_cluster_and_says_what_it_needs() -> None:
    code, text, _ = call("--model", "llama3", "--dataset", "alpaca")
    manifest = yaml.safe_load(text)
    assert code == 0
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text())["x-schema"])
    assert manifest["metadata"]["name"].startswith("llama3-1-8b-alpaca-train-")
    assert manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for words in (
        "Llama 3.1 8B Instruct on Stanford Alpaca",
        "2 nodes × 32 processes; 32 rows a step = 8 replicas × 1 × 4 accumulated.",
        "# namespace          hyperpod-ns-research, with the Kubeflow Training Operator (kubeflow.org/v1)",
        "# nodes              2 × trn1.32xlarge, labelled Schedulable by HyperPod",
        "# claim              fsx-claim, ReadWriteMany, mounted at /fsx",
        "# service account    the default one",
        "# token              no secret",
        "Layout: tensor parallel 8: the smallest that fits, leaves 1.9 GiB of bf16 weights to a core of 16 GiB",
        "Layout: data parallel 8: 2 × 32 processes / 8; ZeRO-1 shards the optimizer over it",
        "Not to be applied as it stands: RUN-ID",
        "hyperpod-lora jobspec --run RUN-ID --write --config FILE | kubectl apply -f -",
    ):
        assert words in comments


def test_it_needs_neither_torch_nor_metaflow_nor_kubernetes() -> None:
    program = (
        "import sys; from steps.cli.main import main;"
        "main(['jobspec', '--model', 'llama3', '--dataset', 'alpaca'], standalone_mode=False);"
        "print([name for name in ('torch', 'transformers', 'metaflow', 'kubernetes') if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "KUBECONFIG": "/none", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--model", "lama3"], "did you mean", id="unknown-model"),
        pytest.param(["--model", "llama3", "--lora-rank", "many"], "--lora-rank: ", id="no-number"),
        pytest.param(
            ["--model", "llama3", "--global-batch", "9"], "must be a multiple of replicas", id="contradiction"
        ),
        pytest.param(["--config", "config/local.yaml"], "launcher.kind: is 'local' in", id="no-cluster"),
        pytest.param(["--write"], "--write: needs --run", id="nowhere-to-write"),
        pytest.param(["--run", "17", "--root", "/nowhere"], "no run '17' below /nowhere: there is none", id="no-run"),
        pytest.param(
            ["--run", "17", "--seed", "3"], "--seed: is decided already by the run", id="option-of-a-decided-run"
        ),
    ],
)
def test_a_mistake_is_said(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    code, _, errors = call(*words)
    assert code == 1
    assert said in errors


def test_by_hand_it_is_the_job_that_the_flow_would_submit(run: RunDir) -> None:
    inputs = make_inputs(run)
    made = by_hand(run, write=True)
    _, job = inputs.job(run)
    spec = launchers.spec_of(inputs.plan.settings, run="LoraFlow/17", step="train", code=made.spec.code)
    assert made.manifest == pytorchjob.build(spec, job, 1)
    assert read_json(job.directory.spec) == dict(job.spec)
    assert (job.directory.attempt(1) / "lease").read_text() == DETACHED
    last = memory.load(job.directory.history, job.identity).last
    assert last is not None
    assert (last.number, last.is_open, last.spec_digest) == (1, True, job.spec_digest)


def test_without_write_it_is_the_same_job_and_nothing_is_written(run: RunDir) -> None:
    make_inputs(run)
    before = sorted(run.path.rglob("*"))
    looked = by_hand(run, write=False)
    text = text_of(looked, reasons=[])
    assert sorted(run.path.rglob("*")) == before
    assert "nothing was written" in text
    assert "jobspec --run RUN --write" in text
    assert by_hand(run, write=True).manifest == looked.manifest


def test_its_code_is_the_newest_archive_of_the_run_or_made_of_the_sources(run: RunDir) -> None:
    make_inputs(run)
    code = by_hand(run, write=True).spec.code
    with tarfile.open(code.path) as packed:
        names = packed.getnames()
    assert {"steps/job/agent/pod_main.py", "config/hyperpod.yaml"} < set(names)
    assert archive_sources(run, write=True) == code
    newer = run.path / "code" / "newer.tgz"
    newer.write_bytes(b"an archive")
    os.utime(newer, (2e9, 2e9))
    assert by_hand(run, write=True).spec.code.path == str(newer)


def test_said_twice_it_is_the_same_until_it_has_begun(run: RunDir) -> None:
    make_inputs(run)
    first = by_hand(run, write=True)
    assert by_hand(run, write=True).manifest == first.manifest
    (first.job.directory.attempt(1) / "nodes").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"attempt 1 of .* has begun: `.*hyperpod-lora status .*` tells"):
        by_hand(run, write=True)


def test_after_a_training_that_was_given_up_it_is_the_next_attempt(run: RunDir) -> None:
    _, job = make_inputs(run).job(run)
    ended = Attempt(3, 1.0, finished_s=2.0, failure_class="user")
    history = memory.History(job.identity, (ended,), verdict=Verdict("permanent", "user", 3, "it broke"))
    memory.save(job.directory.history, history)
    made = by_hand(run, write=True)
    assert made.attempt == 4
    assert made.manifest["metadata"]["name"].endswith("-a4")
    assert memory.load(job.directory.history, job.identity).verdict is None


def test_it_is_refused_where_it_could_only_harm(run: RunDir) -> None:
    with pytest.raises(StorageError, match=r"plan\.json is not there: that run has prepared no data; prepare again"):
        by_hand(run, write=True)
    _, job = make_inputs(run).job(run)
    job.directory.path.mkdir()
    with (
        held_lock(job.directory.lock, timeout_s=1.0, what="the test"),
        pytest.raises(StorageError, match="watched over by"),
    ):
        by_hand(run, write=True)
    job.directory.adapter.mkdir()
    with pytest.raises(StorageError, match="trained already"):
        by_hand(run, write=True)


def test_a_run_that_was_planned_for_one_machine_is_no_job(run: RunDir) -> None:
    inputs = make_inputs(run)
    replace(inputs, plan=plan_of(global_batch=8, max_steps=30)).save(run)
    with pytest.raises(ConfigError, match=r"launcher\.kind: is 'local' in the plan of"):
        by_hand(run, write=True)


@pytest.mark.parametrize(
    ("dry_run", "words"),
    [
        pytest.param(False, "hyperpod-lora resume 17", id="a run that trains"),
        pytest.param(True, "run --continue-from", id="a dry run has no train step to resume"),
    ],
)
def test_its_comments_say_how_it_is_adopted(run: RunDir, dry_run: bool, words: str) -> None:
    make_inputs(run, dry_run=dry_run)
    text = text_of(by_hand(run, write=True), reasons=["because"], warnings=["take care"])
    assert words in text
    assert "# Layout: because" in text
    assert "# WARNING: take care" in text
    assert "secret hub with the key HF_TOKEN" in text
    assert yaml.safe_load(text)["kind"] == "PyTorchJob"


def test_damaged_inputs_name_the_file(run: RunDir) -> None:
    make_inputs(run)
    path = run.path / "plan.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "schema": "another"}))
    with pytest.raises(StorageError, match=r"plan\.json cannot be read .*expected schema"):
        read_inputs(run)
    path.write_text(json.dumps({**raw, "plan": {}}))
    with pytest.raises(StorageError, match="another version wrote it"):
        read_inputs(run)
