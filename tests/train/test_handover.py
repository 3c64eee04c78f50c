"""What leaves a stage computes what was trained, or the stage fails and says which hand-over changed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steps import machine
from steps.evaluate.handover import check_merged
from steps.merge.outputs import merge_folders
from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import record_of
from steps.protocol.handover import HandoverError, HeldOutLoss, require_same
from steps.protocol.prepared import read_record
from steps.protocol.records import Adapter, MergedModel
from steps.train.loop import handover
from steps.train.loop.handover import check_adapter, check_on_host, fits_device, why_not_on_host
from tests.shared.sample_records import ADAPTER, plan_of, prepared_of
from tests.train.train_harness import Training, Trainings

CPU = torch.device("cpu")
pytestmark = pytest.mark.timeout(900)


def head_of(training: Training, result: Path) -> HeldOutLoss:
    head = HeldOutLoss.from_dict(json.loads((result / "training.json").read_text())["head"])
    assert head is not None
    return head


def changed(source: Path, target: Path, name: str, factor: float) -> Path:
    """A copy whose tensors that end with `name` are multiplied."""
    shutil.copytree(source, target)
    file = next(target.glob("*.safetensors"))
    weights = {key: value * factor if key.endswith(name) else value for key, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return target


def test_the_worker_holds_its_adapter_against_the_last_validation(whole: Training, tmp_path: Path) -> None:
    told = [event.kind for event in whole.events()]
    assert told[-3:] == ["checkpoint", "validation_begin", "finished"]
    expected = head_of(whole, whole.result)
    assert expected.rows == 4
    check_adapter(whole.spec, whole.result, expected, place=CPU)
    wrong = changed(whole.result, tmp_path / "wrong", "lora_B.weight", 3.0)
    with pytest.raises(
        HandoverError, match=r"the exported adapter on tiny, .* does not compute what was trained: on the first 4"
    ):
        check_adapter(whole.spec, wrong, expected, place=CPU)


def test_the_merged_model_is_held_against_the_last_validation(whole: Training, tmp_path: Path) -> None:
    plan = plan_of(precision="fp32")
    prepared = read_record(Path(whole.spec.prepared_path))
    adapter = Adapter.from_dict({**ADAPTER.to_dict(), "path": str(whole.result)})
    merge_folders(Path(whole.spec.base_path), whole.result, tmp_path / "merged")
    record = MergedModel(str(tmp_path / "merged"), "i", "d", "float32", 1, 1, 1, 1.0)
    assert check_merged(plan, prepared, adapter, record) == head_of(whole, whole.result)
    changed(tmp_path / "merged", tmp_path / "wrong", "up_proj.weight", 0.0)
    with pytest.raises(HandoverError, match=r"the merged model in .*/wrong does not compute what was trained"):
        check_merged(
            plan, prepared, adapter, MergedModel.from_dict({**record.to_dict(), "path": str(tmp_path / "wrong")})
        )


@pytest.mark.whole
def test_the_best_adapter_is_held_against_its_own_validation(trainings: Trainings) -> None:
    training = trainings.make("best-head", keep="best", learning_rate=0.3, validation_every=2)
    assert training.run() == 0, training.log()
    losses = {event.step: event.data["loss"] for event in training.events(kind="validation")}
    raw = json.loads((training.result / "training.json").read_text())
    assert raw["step"] < 10
    assert raw["validation_loss"] == min(losses.values())


def test_the_host_checks_where_no_device_can_and_says_where_it_cannot(
    whole: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = head_of(whole, whole.result)
    check_on_host(whole.spec, whole.result, expected)
    wrong = changed(whole.result, tmp_path / "wrong", "lora_B.weight", 3.0)
    with pytest.raises(HandoverError, match="the exported adapter on tiny"):
        check_on_host(whole.spec, wrong, expected)
    assert not fits_device(whole.spec, CPU)
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    with caplog.at_level("INFO"):
        check_on_host(whole.spec, wrong, expected)
    assert (
        "is not checked here: it needs 0.0 GiB of memory, free are 0.0; evaluation checks the merged model"
        in caplog.text
    )
    assert why_not_on_host(whole.spec, expected, free_bytes=None) == ""
    monkeypatch.setattr(handover, "MOST_WORK", 1)
    assert why_not_on_host(whole.spec, expected, free_bytes=None) == "tiny is too large for a processor"


@pytest.mark.parametrize(
    ("kind", "expected", "found", "passes"),
    [
        ("fp32", 6.5, 6.505, True),
        ("fp32", 6.5, 22.9, False),
        ("fp32", 0.01, 0.0115, True),
        ("fp32", 0.01, 0.02, False),
        ("bf16", 2.0, 2.05, True),
        ("bf16", 2.0, 1.0, False),
        ("4bit merged", 2.0, 2.4, True),
        ("4bit merged", 2.0, 11.0, False),
        ("fp32", 2.0, float("nan"), False),
    ],
)
def test_the_loss_may_differ_by_rounding_only(kind: str, expected: float, found: float, passes: bool) -> None:
    if passes:
        require_same(HeldOutLoss(4, expected), found, kind=kind, how="it")
        return
    with pytest.raises(HandoverError, match=r"it does not compute what was trained") as caught:
        require_same(HeldOutLoss(4, expected), found, kind=kind, how="it")
    record = record_of(caught.value, rank=0, node="n", step=1, time_s=0.0)
    assert record.failure_class == FailureClass.USER


def test_what_an_older_training_wrote_is_no_mistake(tmp_path: Path) -> None:
    gone = Adapter.from_dict({**ADAPTER.to_dict(), "path": str(tmp_path)})
    record = MergedModel(str(tmp_path), "i", "d", "float32", 1, 1, 1, 1.0)
    assert check_merged(plan_of(), prepared_of(), gone, record) is None
    (tmp_path / "training.json").write_text('{"step": 1, "validation_loss": null, "spec": {"validation_rows": 8}}')
    assert check_merged(plan_of(), prepared_of(), gone, record) is None
    assert HeldOutLoss.from_dict(None) is None
    assert HeldOutLoss.from_dict({"rows": "many"}) is None
