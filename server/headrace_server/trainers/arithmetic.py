"""Chooses where a training computes and in which number format."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from headrace_server.errors import InvalidSpec, Violation
from headrace_server.precision import Precision
from headrace_server.trainers.recipe import Device

_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def choose_device(wanted: Device) -> torch.device:
    """The device to train on.  Raises InvalidSpec when a GPU was asked for and there is none."""
    if wanted is not Device.CPU and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
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


def use_threads(num_threads: int | None) -> int:
    """Set and return how many CPU threads torch computes with; all that this process may use when None."""
    chosen = num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(chosen)
    return chosen
