"""The Neuron runtime's status codes (nrt_status.h) and what each means for the next attempt. Pure; used by `failures`.

The names are AWS's; the class is our reading of their documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.failure_record import FailureClass as F


@dataclass(frozen=True, slots=True)
class NeuronCode:
    """One code of the Neuron runtime."""

    name: str
    failure_class: F
    advice: str = ""
    """What a person can do, where the name does not say."""


CODES: dict[int, NeuronCode] = {
    1: NeuronCode("FAILURE", F.USER),
    2: NeuronCode("INVALID", F.CONFIG),
    3: NeuronCode("INVALID_HANDLE", F.CONFIG),
    4: NeuronCode("RESOURCE", F.UNKNOWN, "out of device or host resources: another process may hold them"),
    5: NeuronCode("TIMEOUT", F.HANG),
    6: NeuronCode("HW_ERROR", F.ACCELERATOR),
    7: NeuronCode("QUEUE_FULL", F.CONFIG),
    9: NeuronCode("LOAD_NOT_ENOUGH_NC", F.CONFIG, "too few NeuronCores: often a stale process still holds them"),
    10: NeuronCode("UNSUPPORTED_NEFF_VERSION", F.CONFIG, "compiler and runtime versions do not fit together"),
    11: NeuronCode("FAIL_HOST_MEM_ALLOC", F.OUT_OF_MEMORY, "host memory, not the device's"),
    13: NeuronCode("UNINITIALIZED", F.CONFIG),
    14: NeuronCode("CLOSED", F.CONFIG),
    15: NeuronCode("QUEUE_EMPTY", F.CONFIG),
    101: NeuronCode("EXEC_UNIT_UNRECOVERABLE", F.ACCELERATOR),
    1002: NeuronCode("EXEC_BAD_INPUT", F.USER),
    1003: NeuronCode("COMPLETED_WITH_NUM_ERR", F.USER, "NaN in a computation: look at the loss and learning rate"),
    1004: NeuronCode("COMPLETED_WITH_ERR", F.UNKNOWN),
    1005: NeuronCode("NC_BUSY", F.UNKNOWN, "another process held the NeuronCore"),
    1006: NeuronCode("EXEC_OOB", F.USER, "an index outside its tensor"),
    1200: NeuronCode("HW_ERR_COLLECTIVES", F.NETWORK, "a collective hung; the fault may be on another worker"),
    1201: NeuronCode("HW_ERR_HBM_UE", F.ACCELERATOR, "uncorrectable memory error: replace the node"),
    1202: NeuronCode("HW_ERR_NC_UE", F.ACCELERATOR, "uncorrectable core error: replace the node"),
    1203: NeuronCode("HW_ERR_DMA_ABORT", F.ACCELERATOR, "replace the node"),
    1204: NeuronCode("SW_NQ_OVERFLOW", F.CONFIG),
    1205: NeuronCode("HW_ERR_REPAIRABLE_HBM_UE", F.ACCELERATOR, "reload the driver or restart the node"),
    1206: NeuronCode("NETWORK_PROXY_FAILURE", F.NETWORK, "EFA"),
}


def neuron_code(number: int) -> NeuronCode:
    """The code's meaning; UNKNOWN for a number that the table lacks."""
    return CODES.get(number, NeuronCode(f"code {number}", F.UNKNOWN))
