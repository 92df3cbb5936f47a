"""How much of a device's arithmetic a training uses: its model FLOPs utilization (Chowdhery et al., 2022, appendix B).

The operations of one forward and one backward pass are counted once.  The peak of a device is what its maker states for
dense matrices of the format in use; where that is not known here, nothing is said.  The peak of a CPU never is.
"""

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from headrace_server.precision import Precision

_TERA = 1e12
_FP32, _TF32, _HALF = range(3)
# Teraflops of dense matrices in FP32, in TF32, and in BF16 and FP16, from the data sheets, by a part of the name.
_PEAKS = MappingProxyType(
    {
        "H200": (67, 494, 989),
        "H100 PCIe": (51, 378, 756),
        "H100 NVL": (60, 418, 835),
        "H100": (67, 494, 989),
        "A100": (19.5, 156, 312),
        "A10G": (31.5, 35, 70),
        "A30": (10.3, 82, 165),
        "L40S": (91.6, 183, 362),
        "L4": (30.3, 60, 121),
    }
)


def peak_flops(device: torch.device, precision: Precision, *, allows_tf32: bool) -> float | None:
    """Operations a second that a device can do at most in this precision; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    row = next((peaks for part, peaks in _PEAKS.items() if part in name), None)
    if row is None:
        return None
    column = (_TF32 if allows_tf32 else _FP32) if precision is Precision.FP32 else _HALF
    return row[column] * _TERA


def count_flops(forward: Callable[[], Tensor]) -> int:
    """The floating-point operations of a forward pass, which returns its loss, and of the backward pass behind it."""
    from torch.utils.flop_counter import FlopCounterMode  # takes time that only a known device is worth

    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(forward())
    return int(counter.get_total_flops())
