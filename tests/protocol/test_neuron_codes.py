"""The Neuron runtime's words and what follows from them: in an exception, and in the log of a rank that it aborted."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.job.agent.runtime_log import LAST_BYTES, find_broken_hardware, record_silent_deaths
from steps.job.classify import classify
from steps.job.progress import begin
from steps.job.snapshot import JobSnapshot, Phase, WorkerState
from steps.protocol.failure_class import CLASS_OF_EXIT
from steps.protocol.failure_record import classify_exception, read_records, record_of
from steps.protocol.neuron_codes import CODES, COMPILER, find_neuron_code


def native(phrase: str) -> str:
    """As TorchNeuron says it."""
    failed = f"NRT EXECUTION FAILED: nrt_execute, {phrase}"
    return f'NRT Execution error occurred on Neuron for operation=aten::mm; error message="{failed}"'


WORDS = [
    ('nrt_tensor_allocate status=4 message="Allocation Failure"', 4, "out_of_memory"),
    ("2024-Jul-30 14:22:31.305961 65191:69012 ERROR NRT:nrt_infodump Failure: NRT_RESOURCE in nrt_load()", 4, "out_of_memory"),
    ("[TDRV:dmem_alloc] Failed to alloc DEVICE memory: 4194304", 4, "out_of_memory"),
    ("NRT_FAIL_HOST_MEM_ALLOC", 11, "out_of_memory"),
    ("2023-Jan-09 20:27:41.0600 15042:15042 ERROR NMGR:dlr_infer Inference completed with err: 5", 5, "hang"),
    ("TDRV:exec_consume (FATAL-RT-UNDEFINED-STATE) inference timeout (600000 ms) on Neuron Device 0", 5, "hang"),
    ("accelerator device unrecoverable (NRT_EXEC_UNIT_UNRECOVERABLE status_code=101)", 101, "accelerator"),
    ("NRT_EXEC_HW_ERR_NC_UE", 1202, "accelerator"),
    ("nrt_execute_repeat status=1205", 1205, "accelerator"),
    ("kernel: NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR instance=i-0 action=TERMINATE_INSTANCE", 1201, "accelerator"),
    ("NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR", 1202, "accelerator"),
    ("TDRV: DMA TX engine 3 is in abort state", 1203, "accelerator"),
    ("[MLA 0][NC 0] DMA RX engine 0 is in an abort state", 1203, "accelerator"),
    ("(FATAL-RT-UNDEFINED-STATE) [ND 0][NC 0] Uncorrectable memory error is detected, metadata: 0x16.", 1202, "accelerator"),
    ("(FATAL-RT-UNDEFINED-STATE) Uncorrectable HBM memory error is detected. Execution results may be", 1201, "accelerator"),
    ("missing collectives status on Neuron Device 0 - suspected hang in collectives operation 0 out of 32", 1200, "network"),
    ("NRT_NETWORK_PROXY_FAILURE", 1206, "network"),
    ("Logical Neuron Core(s) not available - Requested:32 Available:0; NeuronCore(s) not available", 9, "node"),
    ("NRT_EXEC_NC_BUSY", 1005, "node"),
    ("NRT_EXEC_COMPLETED_WITH_ERR", 1004, "accelerator"),
    ("NRT_EXEC_COMPLETED_WITH_NUM_ERR", 1003, "user"),
    ("NRT_EXEC_OOB", 1006, "user"),
    ("nrt_execute status=1006", 1006, "user"),
    ("NRT_UNSUPPORTED_NEFF_VERSION", 10, "config"),
    # TorchNeuron's sentences:
    ("Unknown status (status: 1206)", 1206, "network"),
    ("NRT allocation failed for size 33554432 (OOM)", 4, "out_of_memory"),
    (native("Failed to allocate resource"), 4, "out_of_memory"),
    (native("Operation timed out"), 5, "hang"),
    (native("Hardware failure"), 6, "accelerator"),
    (native("Not enough NCs"), 9, "node"),
    (native("Execution completed with numerical errors (produced NaN)"), 1003, "user"),
    (native("Out of bound access"), 1006, "user"),
    (native("Stuck in collectives op"), 1200, "network"),
    (native("HBM encountered an unrepairable error"), 1201, "accelerator"),
    (native("NC encountered a parity error"), 1202, "accelerator"),
    (native("DMA engine encountered an unrecoverable error"), 1203, "accelerator"),
    (native("HBM encountered a repairable error"), 1205, "accelerator"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number", "failure_class"), WORDS, ids=[f"{item[1]}-{item[0][:24]}" for item in WORDS]
)
def test_the_class_of_an_exception_with_the_runtimes_words(text: str, number: int, failure_class: str) -> None:
    found = find_neuron_code(text)
    assert found is not None
    assert found.number == number
    error = RuntimeError(text)
    assert classify_exception(error).value == failure_class
    record = record_of(error, rank=3, node="n", step=7, time_s=1.0)
    assert CLASS_OF_EXIT[record.exit_code].value == failure_class
    assert record.message.startswith(f"{text} (Neuron runtime {number} {CODES[number].name}")


@pytest.mark.parametrize(
    "text",
    ["status=4", "expected status=1201 in the answer", "NRT_SUCCESS", "nrt_execute status=4711", "mat1 and mat2", ""],
)
def test_other_words_are_nobodys(text: str) -> None:
    assert find_neuron_code(text) is None
    assert classify_exception(RuntimeError(text)).value == "user"


def test_only_a_plain_runtime_error_is_read() -> None:
    assert classify_exception(ValueError("nrt_execute status=1201")).value == "user"


def test_every_code_has_a_class_that_speaks_in_turn() -> None:
    for code in CODES.values():
        assert code.number == COMPILER or find_neuron_code(f"nrt_execute status={code.number}") == code
        who = "Neuron compiler" if code.number == COMPILER else f"Neuron runtime {code.number}"
        assert str(code).startswith(f"{who} {code.name}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("suspected hang in collectives operation 3\nNRT_TIMEOUT\nNEURON_HW_ERR=DMA_ERROR", 1203),
        ("NRT_TIMEOUT\nFailed to alloc DEVICE memory: 1", 4),
        ("NRT_EXEC_HW_ERR_COLLECTIVES\nNRT_TIMEOUT", 1200),
    ],
)
def test_hardware_speaks_before_its_symptoms(text: str, number: int) -> None:
    found = find_neuron_code(text)
    assert found is not None
    assert found.number == number


def abort(folder: Path, rank: int, log: str, *, code: int = -6, finished_s: float = 5.0) -> dict[str, dict[str, float]]:
    (folder / f"rank-{rank}.log").write_text(log)
    return {str(rank): {"exit_code": code, "finished_s": finished_s}}


def test_an_aborted_rank_gets_a_record_from_its_log(tmp_path: Path) -> None:
    log = "step 3\nERROR NRT:nrt_infodump Failure: NRT_EXEC_HW_ERR_HBM_UE in nrt_execute()\nAborted (core dumped)\n"
    record_silent_deaths(tmp_path, abort(tmp_path, 5, log))
    (record,) = read_records(tmp_path)
    assert (record.rank, record.failure_class, record.exit_code, record.time_s) == (5, "accelerator", 76, 5.0)
    assert "SIGABRT" in record.message
    assert "Failure: NRT_EXEC_HW_ERR_HBM_UE in nrt_execute()" in record.message
    assert "the node has to be replaced" in record.message


@pytest.mark.parametrize(
    ("code", "log"), [(-9, "NRT_TIMEOUT"), (1, "NRT_TIMEOUT"), (-15, "NRT_TIMEOUT"), (-6, "free(): invalid pointer")]
)
def test_other_deaths_get_none(code: int, log: str, tmp_path: Path) -> None:
    record_silent_deaths(tmp_path, abort(tmp_path, 0, log, code=code))
    assert read_records(tmp_path) == []


def test_a_rank_without_a_log_or_with_a_record_is_left_alone(tmp_path: Path) -> None:
    record_silent_deaths(tmp_path, {"0": {"exit_code": -6, "finished_s": 1.0}})
    assert read_records(tmp_path) == []
    ranks = abort(tmp_path, 0, "NRT_TIMEOUT")
    record_silent_deaths(tmp_path, ranks)
    (first,) = read_records(tmp_path)
    abort(tmp_path, 0, "NRT_EXEC_OOB")
    record_silent_deaths(tmp_path, ranks)
    assert read_records(tmp_path) == [first]


def test_broken_hardware_is_found_in_any_rank_s_log(tmp_path: Path) -> None:
    (tmp_path / "rank-2.log").write_text("NRT_TIMEOUT\n")
    assert find_broken_hardware(tmp_path) is None
    (tmp_path / "rank-40.log").write_text("DMA TX engine 0 is in an abort state\n" + "x" * LAST_BYTES)
    assert find_broken_hardware(tmp_path) is None, "long ago"
    said = (
        "x" * LAST_BYTES
        + "\nkept\n(FATAL-RT-UNDEFINED-STATE) Uncorrectable HBM memory error is detected.\nNRT_TIMEOUT\n"
    )
    (tmp_path / "rank-40.log").write_text(said)
    (tmp_path / "rank-9.log").write_bytes(b"\xff NRT_EXEC_HW_ERR_COLLECTIVES")
    found = find_broken_hardware(tmp_path)
    assert found is not None
    assert found[0] == 40
    assert found[1].startswith(
        "(FATAL-RT-UNDEFINED-STATE) Uncorrectable HBM memory error is detected. (Neuron runtime 1201"
    )


def test_broken_hardware_on_one_worker_beats_the_hang_of_another(tmp_path: Path) -> None:
    ranks = abort(tmp_path, 0, "suspected hang in collectives operation 0", finished_s=1.0)
    ranks |= abort(tmp_path, 1, "uncorrectable HBM memory error on Neuron Device 3", finished_s=2.0)
    record_silent_deaths(tmp_path, ranks)
    workers = tuple(WorkerState(int(rank), exit_code=-6, finished_s=item["finished_s"]) for rank, item in ranks.items())
    failure = classify(JobSnapshot(Phase.FAILED, workers), read_records(tmp_path), begin(0.0))
    assert (failure.failure_class.value, failure.rank) == ("accelerator", 1)


def test_a_graph_that_cannot_be_compiled_is_not_tried_again_and_a_full_memory_is_the_compilers_too() -> None:
    words = (
        'Compilation error occurred on Neuron for operation=aten::add; error message="COMPILATION FAILED: neuronx-cc'
    )
    record = record_of(RuntimeError(words), rank=0, node="n", step=0, time_s=1.0)
    assert record.failure_class == "config"
    assert "(Neuron compiler COMPILATION: a graph cannot be compiled" in record.message
    assert classify_exception(RuntimeError(f"{words} NCC_EOOM001")).value == "out_of_memory"


def test_success_is_no_failure() -> None:
    assert find_neuron_code("nrt_execute status=0") is None
