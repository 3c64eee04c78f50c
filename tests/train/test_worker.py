"""The worker as a person meets it: a process, or two under torchrun, killed and started again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from steps.protocol.failure_class import EXIT_DIVERGED, FailureClass
from steps.protocol.failure_record import read_records
from tests.train.train_harness import ROOT, Training, Trainings

pytestmark = pytest.mark.timeout(900)  # seconds when alone; the machine may be shared


def test_a_run_tells_its_whole_story(whole: Training) -> None:
    told = [event.kind for event in whole.events()]
    assert told[:4] == ["started", "model_loaded", "first_step", "step"]
    assert told[-1] == "finished"
    steps = whole.events(kind="step")
    assert [event.step for event in steps] == list(range(1, 11))
    assert steps[-1].data["loss"] < steps[0].data["loss"]
    assert set(steps[0].data) == {
        "of", "loss", "lr", "grad_norm", "tokens", "target_tokens", "tokens_per_s", "seconds",
    }  # fmt: skip
    finished = whole.events(kind="finished")[0].data
    assert set(finished["files"]) == {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert whole.path / finished["result"] == whole.result


def test_the_result_loads_in_peft_and_names_a_base_that_can_be_found(whole: Training) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(whole.spec.base_path)
    PeftModel.from_pretrained(base, whole.result)
    config = json.loads((whole.result / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == whole.spec.base_path  # a base from the hub is named by its id


LAYOUTS = [
    pytest.param(2, 1),  # one process alone is killed in `make test` as well: in the short soak, and through the flow
    *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1, 1), (2, 2), (1, 2), (4, 2), (1, 4))),
]


@pytest.mark.whole
@pytest.mark.parametrize(("before", "after"), LAYOUTS)
def test_killed_and_resumed_on_any_number_of_processes_is_bit_identical_to_uninterrupted(
    whole: Training, trainings: Trainings, before: int, after: int
) -> None:
    training = trainings.make(f"from-{before}-to-{after}")
    assert training.run_until(6, processes=before) != 0
    assert training.run(2, processes=after) == 0, training.log(2)
    started = training.events(2, "started")[0]
    assert (started.step, started.data["resumed_from"]) == (4, "step-000004.001-01")
    assert started.data["layout_changed"] == (before != after)
    assert training.bits == whole.bits


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_the_step_saves_and_exits_143(whole: Training, trainings: Trainings, processes: int) -> None:
    training = trainings.make(f"asked-to-stop-{processes}")
    code = training.run_until(2, processes=processes, send=lambda process: process.send_signal(signal.SIGTERM))
    assert code == FailureClass.PREEMPTED.exit_code or processes > 1  # torchrun has an exit code of its own
    told = [event.kind for event in training.events()]
    assert told[-3:] == ["checkpoint_begin", "checkpoint", "stopping"]
    stopped_at = training.events(kind="stopping")[0].step
    assert read_records(training.spec.place.attempt(1)) == []
    assert training.run(2, processes=processes) == 0, training.log(2)
    assert training.events(2, "started")[0].step == stopped_at
    assert training.bits == whole.bits


@pytest.mark.slow
def test_a_rank_that_dies_takes_its_peer_along_as_a_victim(trainings: Trainings) -> None:
    import psutil

    def kill_rank_1(process: object) -> None:
        for child in psutil.Process(process.pid).children():  # type: ignore[attr-defined]
            if child.environ().get("RANK") == "1":
                child.kill()

    training = trainings.make("one-rank-dies")
    assert training.run_until(2, processes=2, send=kill_rank_1) != 0
    records = read_records(training.spec.place.attempt(1))
    assert [(record.rank, record.failure_class, record.exit_code) for record in records] in (
        [(0, "network", FailureClass.NETWORK.exit_code)],
        [],  # torchrun was quicker to end it
    )


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    whole: Training, trainings: Trainings
) -> None:
    training = trainings.make("damaged")
    assert training.run_until(9) != 0
    newest = training.spec.place.checkpoints / "step-000008.001-01"
    with (newest / "optimizer.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x7f\x7f")
    assert training.run(2) == 0, training.log(2)
    assert training.events(2, "started")[0].step == 4
    assert "has other content than was saved" in training.log(2)
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    assert training.bits == whole.bits


@pytest.mark.slow
def test_a_straggler_may_not_write(whole: Training, trainings: Trainings) -> None:
    training = trainings.make("straggler")
    (training.spec.place.writers / "002-01").mkdir(parents=True)
    assert training.run(1) == FailureClass.CONFIG.exit_code
    (record,) = read_records(training.spec.place.attempt(1))
    assert "starts after attempt 2 has begun" in record.message
    assert not training.spec.place.checkpoints.exists()


@pytest.mark.slow
def test_poisoned_weights_end_at_step_1_as_the_users(trainings: Trainings) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.train.train_harness import write_base

    folder = trainings.folder / "poisoned"
    write_base(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    training = trainings.make("diverged", base="poisoned")
    assert training.run() == EXIT_DIVERGED
    (record,) = read_records(training.spec.place.attempt(1))
    assert (record.failure_class, record.exception) == ("user", "DivergedError")
    assert "the loss is nan at step 1 of 10, learning rate 0" in record.message


@pytest.mark.slow
def test_fsdp_has_ddps_losses_and_resumes_on_its_layout_only(whole: Training, trainings: Trainings) -> None:
    training = trainings.make("fsdp", sharding="fsdp")
    stop = training.run_until(5, processes=2)
    assert stop != 0
    assert training.run(2, processes=2) == 0, training.log(2)
    assert training.events(2, "started")[0].step == 4
    assert [event.kind for event in training.events(2)][-2:] == [
        "validation_begin",
        "finished",
    ]  # the adapter was checked
    assert "is not checked here" not in training.log(2)
    losses = {event.step: event.data["loss"] for attempt in (1, 2) for event in training.events(attempt, "step")}
    for event in whole.events(kind="step"):
        assert losses[event.step] == pytest.approx(event.data["loss"], abs=1e-4)
    alone = trainings.make("fsdp", sharding="fsdp")
    assert alone.run(3) == FailureClass.CONFIG.exit_code
    (record,) = read_records(alone.spec.place.attempt(3))
    assert "fsdp goes on with as many processes as saved it: 2, not 1" in record.message


@pytest.mark.slow
def test_gradient_checkpointing_and_packing_train_alike(trainings: Trainings) -> None:
    plain = trainings.make("packed", samples=3, steps=6)
    checkpointed = trainings.make("packed-checkpointed", samples=3, steps=6, gradient_checkpointing=True)
    assert plain.run() == 0, plain.log()
    assert checkpointed.run() == 0, checkpointed.log()
    for ours, theirs in zip(plain.events(kind="step"), checkpointed.events(kind="step"), strict=True):
        assert ours.data["loss"] == pytest.approx(theirs.data["loss"], abs=1e-6)
        assert ours.data["grad_norm"] == pytest.approx(theirs.data["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_other_methods_and_bf16_train_and_resume(trainings: Trainings, method: str) -> None:
    lora = trainings.make("any").spec.training.lora.model_copy(update={"method": method})
    whole = trainings.make(f"{method}-whole", lora=lora, precision="bf16", keep="best")
    assert whole.run() == 0, whole.log()
    killed = trainings.make(f"{method}-killed", lora=lora, precision="bf16", keep="best")
    assert killed.run_until(6) != 0
    assert killed.run(2) == 0, killed.log(2)
    assert killed.bits == whole.bits


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_base_of_4_bits_trains_on_a_cpu(trainings: Trainings, precision: str) -> None:
    training = trainings.make(f"4bit-{precision}", quantization="4bit", precision=precision)
    assert training.run() == 0, training.log()
    losses = [event.data["loss"] for event in training.events(kind="step")]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_training_starts_from_an_adapter(whole: Training, trainings: Trainings) -> None:
    lora = whole.spec.training.lora.model_copy(update={"init_adapter": str(whole.result)})
    training = trainings.make("from-adapter", lora=lora, warmup_ratio=0.0, steps=2)
    assert training.run() == 0, training.log()
    assert training.events(kind="step")[0].data["loss"] < whole.events(kind="step")[0].data["loss"]


@pytest.mark.whole
def test_an_installed_torch_xla_is_left_alone(trainings: Trainings, tmp_path: Path) -> None:
    """accelerate and transformers would import it, and take its path; here whoever does ends the worker."""
    (tmp_path / "torch_xla").mkdir()
    (tmp_path / "torch_xla" / "__init__.py").write_text("raise RuntimeError('torch_xla was imported')")
    training = trainings.make("beside-xla", steps=1)
    training.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert training.run() == 0, training.log()
