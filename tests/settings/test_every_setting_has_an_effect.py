"""Every setting of docs/settings.md does something: what it changes is made here twice, or the test that shows it is named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.errors import LoraFlowError
from steps.flow import deciding, launchers, stages
from steps.flow.step_pods import pod_of
from steps.job.job import Job
from steps.protocol.prepared import read_record
from steps.protocol.records import PreparedData
from steps.protocol.rundir import RunDir, TrainDir
from steps.pytorchjob.manifest import build
from steps.pytorchjob.spec import Code
from steps.report.choose import sinks_of
from steps.settings.config import Settings, parse_settings
from steps.settings.reporting import Reporting
from steps.train import stage as train_stage
from tests.report.standin import facts_of
from tests.shared.sample_records import BASE, REPORT, plan_of
from tests.train.train_harness import write_prepared

TESTS = Path(__file__).resolve().parents[1]
DOCS = TESTS.parent / "docs" / "settings.md"

CLUSTER = {
    "storage": {"root": "/fsx/a/runs", "cache": "/fsx/a/cache"},
    "launcher": {"kind": "pytorchjob"},
    "cluster": {
        "namespace": "kubeflow", "image": "lora:1", "nodes": 2, "queue": "research", "topology": "preferred",
        "volumes": [{"name": "one", "mount_path": "/one", "claim": "a-claim"}],
    },
}  # fmt: skip


def with_value(raw: dict[str, Any], setting: str, value: Any) -> dict[str, Any]:
    """The same with one setting changed; `[]` stands for a list's first item."""
    name, _, rest = setting.partition(".")
    here = raw.get(name.removesuffix("[]"))
    if not rest:
        return {**raw, name: value}
    if name.endswith("[]"):
        changed = with_value(here[0], rest, value)  # type: ignore[index]
        return {**raw, name.removesuffix("[]"): [{key: item for key, item in changed.items() if item is not None}]}
    return {**raw, name: with_value(here or {}, rest, value)}


def worker_pod(settings: Settings) -> Any:
    """The PyTorchJob of a training."""
    root = settings.storage.root
    job = Job(
        module="m", spec={}, identity="1f", total_steps=9, directory=TrainDir(Path(root) / "LoraFlow/17/train-1f"), processes=2,
        nodes=settings.cluster.nodes, threads_per_process=4, environment={}, label="tiny-orders",
    )  # fmt: skip
    spec = launchers.spec_of(settings, run="LoraFlow/17", step="train", code=Code(f"{root}/code.tgz", "ab" * 32))
    return build(spec, job, 1)


WORKER_POD: dict[str, Any] = {
    "storage.root": "/fsx/others", "cluster.namespace": "hyperpod-ns-a", "cluster.image": "lora:2",
    "cluster.image_pull_policy": "Always", "cluster.instance_type": "trn1.32xlarge", "cluster.nodes": 3, "cluster.cpu": 4,
    "cluster.memory_gib": 8, "cluster.shared_memory_gib": 3, "cluster.claim": "other", "cluster.mount_path": "/fsx/a",
    "cluster.service_account": "a", "cluster.run_as_user": 5, "cluster.queue": "b", "cluster.priority": "c",
    "cluster.topology": "required", "cluster.topology_level": "d", "cluster.token_secret": "e", "cluster.labels": {"f": "g"},
    "cluster.annotations": {"h": "i"}, "cluster.node_selector": {"j": "k"}, "cluster.environment": {"L": "m"},
    "cluster.tolerations": [{"key": "n", "operator": "Exists"}], "cluster.image_pull_secrets": ["o"],
    "cluster.require_healthy_nodes": False, "cluster.recovery": "hyperpod", "cluster.lease_s": 77.0,
    "cluster.name_wait_s": 78.0, "deadlines.grace_s": 79.0, "cluster.volumes[].name": "p",
    "cluster.volumes[].mount_path": "/q", "cluster.volumes[].read_only": False, "cluster.volumes[].claim": "r",
}  # fmt: skip
STEP_POD: dict[str, Any] = {
    "cluster.steps.image": "lora:3", "cluster.steps.service_account": "a", "cluster.steps.cpu": 3, "cluster.steps.memory_gib": 5,
    "cluster.steps.secrets": ["b"], "cluster.steps.node_selector": {"c": "d"},
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "launcher.threads_per_process": 3, "checkpoints.every_steps": 4, "checkpoints.keep": 5, "validation.every_steps": 6,
    "validation.max_rows": 7, "validation.early_stopping_patience": 8, "validation.keep": "best",
}  # fmt: skip
NAMED = {
    "storage.cache": "settings/test_every_setting_has_an_effect.py::test_the_cache_is_where_it_is_said",
    "storage.min_free_gib": "prepare/test_prepare_disk.py::test_a_disk_that_fills_anywhere_leaves_nothing_and_says_so",
    "launcher.kind": "cli/test_jobspec.py::test_it_is_printed_without_a_cluster_and_says_what_it_needs",
    "launcher.backend": "test_machine.py::test_auto_is_bf16_only_where_the_device_is_fast_at_it",
    "launcher.tensor_parallel": "train/neuron/test_layout.py::test_what_is_given_stands_and_is_commented",
    "launcher.pipeline_parallel": "train/neuron/test_layout.py::test_stages_need_less_tensor_parallelism",
    "launcher.compile_cache": "train/neuron/test_environment.py::test_the_environment_of_two_nodes",
    "launcher.precompile": "train/neuron/test_precompile.py::test_the_job_is_the_trainings_with_a_wrapper_and_a_place_of_its_own",
    "prices.node_hour": "flow/test_estimate.py::test_the_speed_of_the_last_training_gives_time_and_cost",
    "prices.currency": "flow/test_estimate.py::test_the_speed_of_the_last_training_gives_time_and_cost",
    "limits.node_hours": "job/test_budget.py::test_the_tighter_limit_holds",
    "limits.cost": "job/test_budget.py::test_the_tighter_limit_holds",
    "cluster.context": "cli/test_preflight.py::test_a_context_that_is_not_there_is_told",
    "cluster.min_nodes": "train/neuron/test_manifest.py::test_fewer_nodes_keep_the_layout_of_a_node",
    "cluster.hyperpod_retries": "pytorchjob/test_manifest.py::test_hyperpods_auto_resume_is_told_what_it_may_do",
    "cluster.detach": "settings/test_every_setting_has_an_effect.py::test_a_job_is_left_running_only_on_a_cluster",
    "cluster.api_patience_s": "pytorchjob/test_onlooker.py::test_an_api_that_is_away_is_told_once_and_its_return_too",
    "cluster.hyperpod_cluster": "preflight/test_cloud.py::test_all_pages_of_instances_are_read",
    "cluster.region": "preflight/test_cloud.py::test_the_datastore",
    "cluster.preflight": "settings/test_every_setting_has_an_effect.py::test_the_cluster_is_looked_at_unless_it_is_not_wanted",
    "cluster.volumes[].host_path": "pytorchjob/test_manifest.py::test_the_manifest_is_the_golden_one",
    "cluster.volumes[].config_map": "pytorchjob/test_manifest.py::test_the_manifest_is_the_golden_one",
    "cluster.volumes[].secret": "pytorchjob/test_manifest.py::test_the_manifest_is_the_golden_one",
    "cluster.steps.enabled": "flow/test_step_pods.py::test_elsewhere_no_step_is_a_pod",
    "prepare.unusable_rows": "prepare/test_prepare_stage.py::test_rows_that_cannot_be_used_are_refused_where_the_config_says_so",
    **dict.fromkeys(
        (
            f"deadlines.{name}_s"
            for name in ("model_load", "first_step", "step_gap", "checkpoint", "validation", "exit")
        ),
        "job/test_progress.py::test_deadline_follows_the_last_event",
    ),
    "deadlines.queue_s": "job/test_progress.py::test_deadline_follows_the_last_event",
    "deadlines.startup_s": "job/test_progress.py::test_deadline_follows_the_last_event",
    "deadlines.compiling_steps": "job/test_progress.py::test_the_first_steps_may_compile_again",
    "deadlines.step_gap_factor": "job/test_progress.py::test_deadline_follows_the_last_event",
    "deadlines.deletion_s": "job/test_supervise.py::test_something_that_cannot_be_killed_is_said",
    "deadlines.total_s": "job/test_clock_backwards.py::test_the_total_deadline_follows_the_monotonic_clock",
    **dict.fromkeys(
        (
            f"retry.{name}"
            for name in ("max_attempts", "max_without_progress", "delay_s", "delay_factor", "max_delay_s")
        ),
        "job/test_retry.py::test_attempt_is_followed_by_another",
    ),
    "evaluation.score": (
        "evaluate/test_evaluate_stage.py::"
        "test_a_score_of_ones_own_is_loaded_from_the_settings_and_measured_anew_when_it_changes"
    ),
    "evaluation.max_rows": "evaluate/test_evaluate_stage.py::test_samples_stand_side_by_side",
    "evaluation.max_loss_rows": "evaluate/test_evaluate_stage.py::test_the_loss_is_of_as_many_rows_as_are_asked_for",
    "evaluation.samples": "flow/cards/test_metaflow_cards.py::test_the_evaluation_is_a_card_and_a_file",
    "evaluation.batch_size": "evaluate/test_generate.py::test_answers_in_batches_equal_answers_one_by_one",
    "evaluation.max_new_tokens": "evaluate/test_evaluate_stage.py::test_the_length_of_an_answer_follows_from_the_references",
    "evaluation.min_improvement": "evaluate/test_evaluate_stage.py::test_the_base_model_is_measured_once_for_all_tuned_models",
    "evaluation.on_gate_failure": "settings/test_every_setting_has_an_effect.py::test_a_gate_that_is_not_passed_fails",
    "merge.dtype": "settings/test_resolve.py::test_the_type_of_the_merged_weights_is_the_options_then_the_configs",
    "inference.enabled": "flow/test_mistakes_at_the_door.py::test_in_what_the_compiled_model_should_be",
    **dict.fromkeys(
        (
            f"inference.{name}"
            for name in ("batch_size", "tensor_parallel", "instance_type", "sequence_length", "dtype")
        ),
        "export/test_worker.py::",
    ),
    "inference.limit_s": "export/test_worker.py::test_on_a_cluster_a_node_compiles_and_its_record_is_the_artifact",
    **dict.fromkeys(
        ("reporting.report_to", "reporting.mlflow_uri", "reporting.otlp_endpoint"), "report/test_choose.py::"
    ),
    **dict.fromkeys(("reporting.notify.address_from", "reporting.notify.command"), "report/test_choose.py::"),
    "reporting.mlflow_experiment": "settings/test_every_setting_has_an_effect.py::test_mlflow_hears_its_experiment",
    "reporting.notify.tell": "report/test_notices.py::",
    "reporting.notify.stuck_after_s": "report/test_notices.py::test_stuck_in_a_queue_is_told_while_it_waits",
    **dict.fromkeys(("publish.what", "publish.s3"), "publish/test_bucket.py::"),
    "publish.hub": "publish/test_hub.py::",
    **dict.fromkeys(("publish.registries", "publish.image"), "publish/test_registry.py::"),
    "publish.name": "publish/test_check.py::test_the_name_is_the_given_one_or_made_of_model_and_data",
    **dict.fromkeys(
        (
            f"deployment.{name}"
            for name in (
                "project",
                "branch",
                "production",
                "trigger.event",
                "trigger.parameters",
                "schedule",
                "timezone",
            )
        ),
        "flow/test_deployment.py::test_only_what_is_named_is_added",
    ),
    "deployment.trigger.of_project": "flow/test_deployment.py::test_an_event_of_the_project_has_a_name_within_it",
    "deployment.announce": "flow/test_deployment.py::test_the_event_tells_of_a_model_that_passed_its_gate_and_of_no_other",
    "run": "cli/test_run.py::test_a_dry_run_with_options_from_a_config_of_ones_own",
}
"""What only a whole stage, a supervisor's story or a server shows: file::test, or a file whose tests all turn on it."""


def listed_settings() -> set[str]:
    """Of the page that people read."""
    after = DOCS.read_text().partition("\n## Settings\n")[2]
    return set(re.findall(r"^\| `([^`]+)` \|", after, re.MULTILINE))


def test_every_setting_stands_in_one_table() -> None:
    tables = [WORKER_POD, STEP_POD, TRAINING, NAMED]
    named = [setting for table in tables for setting in table]
    assert sorted(named) == sorted(listed_settings())


@pytest.mark.parametrize("setting", NAMED)
def test_the_test_that_is_named_is_there_and_speaks_of_the_setting(setting: str) -> None:
    file, _, test = NAMED[setting].partition("::")
    text = (TESTS / file).read_text()
    assert f"def {test or 'test_'}" in text
    assert re.search(rf"\b{setting.rpartition('.')[2]}\b", text)


@pytest.mark.parametrize("setting", WORKER_POD)
def test_the_workers_pod_follows(setting: str) -> None:
    changed = parse_settings(with_value(CLUSTER, setting, WORKER_POD[setting]))
    assert worker_pod(changed) != worker_pod(parse_settings(CLUSTER))


@pytest.mark.parametrize("setting", STEP_POD)
def test_the_steps_pods_follow(setting: str) -> None:
    changed = parse_settings(with_value(CLUSTER, setting, STEP_POD[setting]))
    assert pod_of(changed, "prepare") != pod_of(parse_settings(CLUSTER), "prepare")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("settings") / "prepared"
    write_prepared(folder, steps=10, global_batch=8)
    return replace(read_record(folder), steps=2000, validation_samples=400)


@pytest.mark.parametrize("setting", TRAINING)
def test_the_training_follows(setting: str, prepared: PreparedData) -> None:
    def training(raw: dict[str, Any]) -> Any:
        plan = plan_of(raw, global_batch=8, sequence_length=128, packing="off")
        return train_stage.build(plan, BASE, prepared, RunDir(Path("/run")))[0].to_dict()

    assert training(with_value({}, setting, TRAINING[setting])) != training({})


def test_the_cache_is_where_it_is_said(tmp_path: Path) -> None:
    assert deciding.cache_folder(plan_of({"storage": {"cache": str(tmp_path / "cache")}})) == tmp_path / "cache"


def test_a_job_is_left_running_only_on_a_cluster() -> None:
    detach = {"cluster": {**CLUSTER["cluster"], "detach": True}}
    assert parse_settings({**CLUSTER, **detach}).detaches
    assert not parse_settings(CLUSTER).detaches


@pytest.mark.parametrize("wanted", [True, False])
def test_the_cluster_is_looked_at_unless_it_is_not_wanted(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr("steps.preflight.run.require", lambda target, notice: looked.append(target))
    deciding.check_cluster(plan_of({**CLUSTER, "cluster": {**CLUSTER["cluster"], "preflight": wanted}}))
    assert len(looked) == wanted


def test_mlflow_hears_its_experiment(tmp_path: Path) -> None:
    asked = Reporting(report_to=("mlflow",), mlflow_uri="http://127.0.0.1:9", mlflow_experiment="night shift")
    [sink] = sinks_of(asked, facts_of(tmp_path), {})
    assert "night shift" in [getattr(sink, name, None) for name in (*dir(sink), *getattr(type(sink), "__slots__", ()))]


def test_a_gate_that_is_not_passed_fails() -> None:
    failed = replace(REPORT, gate_passed=False, gate="not passed: worse")
    asked = plan_of({"evaluation": {"on_gate_failure": "fail"}})
    with pytest.raises(
        LoraFlowError, match=r"the gate is not passed: not passed: worse; the report is in /run/evaluation"
    ):
        stages.require_gate(asked, failed)
    stages.require_gate(asked, REPORT)
    stages.require_gate(plan_of(), failed)
