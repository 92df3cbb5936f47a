"""Chooses where a training computes and in which number format."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.precision import Precision
from headrace_server.trainers.recipe import Device

_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def choose_device(wanted: Device, local_rank: int = 0) -> torch.device:
    """The device to train on, one for each rank of a machine.

    Raises InvalidSpec when a GPU was asked for and there is none.
    """
    if wanted is not Device.CPU and torch.cuda.is_available():
        device = torch.device("cuda", min(local_rank, torch.cuda.device_count() - 1))
        torch.cuda.set_device(device)
        return device
    if wanted is Device.GPU:
        raise InvalidSpec([Violation("resources.device", "there is no GPU that this trainer can use")])
    return torch.device("cpu")


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """The number format of forward and backward passes.  AUTO: FP32 on a CPU, BF16 on a GPU that has it."""
    if wanted is not Precision.AUTO:
        return wanted
    return Precision.BF16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else Precision.FP32


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What forward passes run in; reusable.  Weights stay in float32."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


def prefers_channels_last(wanted: bool | None, device: torch.device) -> bool:
    """Whether images lie in memory pixel by pixel: as wanted, or else where convolutions are faster for it."""
    return device.type == "cuda" if wanted is None else wanted


def use_algorithms(*, deterministic: bool, precision: Precision, device: torch.device) -> None:
    """Choose between repeatable and fast kernels for this process, before the first of them runs.

    Deterministic: an operation that has no such kernel raises RuntimeError.  Otherwise the fastest convolutions are
    searched for, and what stays in float32 beside reduced precision may round its factors to TF32.
    """
    if deterministic:
        # Read when the first handle of cuBLAS is made; the value is one of the two that NVIDIA documents as repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # It would fill every new tensor, in case somebody reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.set_float32_matmul_precision("highest" if precision is Precision.FP32 or deterministic else "high")


def use_threads(num_threads: int | None, num_ranks: int = 1) -> int:
    """Set and return how many CPU threads torch computes with.

    When None, all that this process may use, shared with the other ranks of this machine.
    """
    chosen = num_threads or max(1, len(os.sched_getaffinity(0)) // num_ranks)
    torch.set_num_threads(chosen)
    return chosen


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any is NaN or infinite.  Waits for the device; one look at each element, and no copies."""
    extremes = [torch.stack(tensor.aminmax()) for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return all(bool(each.isfinite().all()) for each in extremes)
