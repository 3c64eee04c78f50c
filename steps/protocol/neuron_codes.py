"""The Neuron runtime's words: its status codes (nrt_status.h), where they stand in messages and logs, and what each means.

TorchNeuron (`launcher.backend: torchneuron`) says them in sentences of its own, at a later call than the one that failed.

Pure. Used by `failure_record` for exceptions, and by `agent.runtime_log` for processes that died without one. The names are
AWS's; the class is our reading of their documentation: nobody here has seen these errors on a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steps.protocol.failure_class import FailureClass as F

COMPILER = -1
"""In place of a status: the compiler has none, and 0 is the runtime's success."""


@dataclass(frozen=True, slots=True)
class NeuronCode:
    """One code of the Neuron runtime."""

    number: int
    name: str
    """Without the NRT_ and EXEC_ in front."""
    failure_class: F
    advice: str = ""
    """What a person can do, where the name does not say."""

    def __str__(self) -> str:
        who = f"Neuron runtime {self.number}" if self.number != COMPILER else "Neuron compiler"
        return f"{who} {self.name}{': ' if self.advice else ''}{self.advice}"


MEMORY = (
    "out of device memory, unless another process holds it (neuron-ls shows which): lower --micro-batch or --sequence-length, "
    "turn --gradient-checkpointing on, or, with backend neuron, raise launcher.tensor_parallel"
)
REPLACE = "a hardware fault: the node has to be replaced"
HELD = "another process holds NeuronCores of this node: neuron-ls shows which, end it, or reload the driver"
HUNG = "a device or a peer did not answer in time; if the step is only long, raise NEURON_RT_EXEC_TIMEOUT in cluster.environment"

CODES: dict[int, NeuronCode] = {
    code.number: code
    for code in (
        NeuronCode(COMPILER, "COMPILATION", F.CONFIG, "a graph cannot be compiled; the operation is named above"),
        NeuronCode(1, "FAILURE", F.USER),
        NeuronCode(2, "INVALID", F.CONFIG, "image and driver may be of different Neuron SDKs"),
        NeuronCode(3, "INVALID_HANDLE", F.CONFIG),
        NeuronCode(4, "RESOURCE", F.OUT_OF_MEMORY, MEMORY),
        NeuronCode(5, "TIMEOUT", F.HANG, HUNG),
        NeuronCode(6, "HW_ERROR", F.ACCELERATOR, REPLACE),
        NeuronCode(
            7,
            "QUEUE_FULL",
            F.CONFIG,
            "lower NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS in cluster.environment (runtimes before 2.34 only: later ones "
            "take no notice of it)",
        ),
        # The number of processes is checked before submission, so a process of an earlier attempt must still hold cores.
        NeuronCode(9, "LOAD_NOT_ENOUGH_NC", F.NODE, HELD),
        NeuronCode(10, "UNSUPPORTED_NEFF_VERSION", F.CONFIG, "image and driver are of different Neuron SDKs"),
        NeuronCode(
            11, "FAIL_HOST_MEM_ALLOC", F.OUT_OF_MEMORY, "host memory, not the device's: raise cluster.memory_gib"
        ),
        NeuronCode(13, "UNINITIALIZED", F.CONFIG),
        NeuronCode(14, "CLOSED", F.CONFIG),
        NeuronCode(15, "QUEUE_EMPTY", F.CONFIG),
        NeuronCode(
            101,
            "UNIT_UNRECOVERABLE",
            F.ACCELERATOR,
            "if it comes again, the node has to be replaced",
        ),
        NeuronCode(1002, "BAD_INPUT", F.USER),
        NeuronCode(
            1003, "COMPLETED_WITH_NUM_ERR", F.USER, "NaN in a computation: look at the loss and --learning-rate"
        ),
        # Of a logical error too (an event cleared twice), but AWS names it as the end of a parity error in the device's memory.
        NeuronCode(1004, "COMPLETED_WITH_ERR", F.ACCELERATOR, "if it comes again, the node has to be replaced"),
        NeuronCode(1005, "NC_BUSY", F.NODE, HELD),
        NeuronCode(1006, "OOB", F.USER, "an index outside its tensor: a token id beyond the vocabulary, say"),
        NeuronCode(1200, "HW_ERR_COLLECTIVES", F.NETWORK, "a collective hung; the fault may be on another worker"),
        NeuronCode(1201, "HW_ERR_HBM_UE", F.ACCELERATOR, REPLACE),
        NeuronCode(1202, "HW_ERR_NC_UE", F.ACCELERATOR, REPLACE),
        NeuronCode(1203, "HW_ERR_DMA_ABORT", F.ACCELERATOR, REPLACE),
        NeuronCode(1204, "SW_NQ_OVERFLOW", F.CONFIG),
        NeuronCode(1205, "HW_ERR_REPAIRABLE_HBM_UE", F.ACCELERATOR, "reload the driver or restart the node"),
        NeuronCode(1206, "NETWORK_PROXY_FAILURE", F.NETWORK, "EFA: look at the security group and the EFA plugin"),
    )
}
_NUMBER_OF_NAME = {code.name: code.number for code in CODES.values()}

_NUMBERED = re.compile(
    r"nrt_\w+ (?:failed )?status=(\d+)|status_code=(\d+)|completed with err: (\d+)|unknown status \(status: (\d+)\)",
    re.IGNORECASE,
)
"""`nrt_tensor_allocate status=4 message="Allocation Failure"`, `NRT_TIMEOUT status_code=5`, `Inference completed with err: 5`"""
_NAMED = re.compile(r"\bNRT_(?:EXEC_)?([A-Z][A-Z_]+)\b")
_PHRASES: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), number)
    for pattern, number in (
        (r"failed to alloc(ate)? DEVICE memory", 4),
        (r"NeuronCore\(s\) not available", 9),
        (r"FATAL-RT-UNDEFINED-STATE\).*(execution|inference) timeout", 5),
        (r"suspected hang in collectives", 1200),
        (r"uncorrectable HBM memory error|NEURON_HW_ERR=HBM_UNCORRECTABLE", 1201),
        (r"uncorrectable memory error|NEURON_HW_ERR=(NC|SRAM)_UNCORRECTABLE", 1202),
        (r"DMA [RT]X engine.* abort state|NEURON_HW_ERR=DMA_ERROR", 1203),
        (r"NEURON_HW_ERR=HANG_ON_COLLECTIVES", 1200),
        # TorchNeuron's own, of operations and of its allocator:
        (r"COMPILATION FAILED|compilation error occurred on Neuron", COMPILER),
        (r"NRT allocation failed for size \d+|\bNCC_EOOM\d+", 4),
        *(
            (rf"NRT EXECUTION FAILED:.*{words}", number)
            for words, number in (
                (r"invalid NEFF", 2),
                (r"failed to allocate resource", 4),
                (r"operation timed out", 5),
                (r"hardware failure", 6),
                (r"queue (is )?full", 7),
                (r"not enough NCs", 9),
                (r"unsupported NEFF version", 10),
                (r"host memory", 11),
                (r"numerical error", 1003),
                (r"completed with errors", 1004),
                (r"locked by another", 1005),
                (r"out[- ]of[- ]bound", 1006),
                (r"stuck in collectives", 1200),
                (r"HBM.*\bunrepairable", 1201),
                (r"parity error", 1202),
                (r"DMA.*unrecoverable", 1203),
                (r"notification queue overflow", 1204),
                (r"HBM.*\brepairable", 1205),
                (r"network proxy", 1206),
            )
        ),
    )
)
"""What the runtime and the driver write to their logs."""


def find_neuron_code(text: str) -> NeuronCode | None:
    """What the runtime says in a message or a log, the cause before its symptoms; None if it says nothing that is known here."""
    numbers = {int(number) for groups in _NUMBERED.findall(text) for number in groups if number}
    numbers |= {_NUMBER_OF_NAME[name] for name in _NAMED.findall(text) if name in _NUMBER_OF_NAME}
    numbers |= {number for pattern, number in _PHRASES if pattern.search(text)}
    found = [CODES[number] for number in sorted(numbers) if number in CODES]
    return min(found, key=lambda code: code.failure_class.precedence, default=None)
