"""Finds out how many rows the memory holds at once, before the first step is done.

On a GPU by trying: a forward and a backward pass of as many rows as are wanted, then of half as many, until they fit.
On a CPU, where a process that takes too much is not told but killed, by counting: what passes of two and of four rows
keep for the backward pass says what each row takes.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

_CALM = 0.9  # the share of the free memory that is planned with
_FEW, _MORE = 2, 4
SHARE_FOR_ROWS = 0.5
"""The share of the free memory that rows may fill, before they are read from a file instead."""
_CGROUP = Path("/sys/fs/cgroup")

Passes = Callable[[int], Tensor]
"""A forward pass over so many rows; its loss, which holds all that a backward pass needs."""


def rows_that_fit(forward: Passes, network: nn.Module, device: torch.device, wanted: int) -> int:
    """How many rows, at most `wanted`, one micro-batch may have; 0 if not even one fits.

    `forward` is called a few times; it changes no weights, but may change what passes change (running statistics, the
    state of generators), which is put back for the network, but not for generators.  Waits for the device.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        if device.type == "cuda":
            return _by_trying(forward, network, wanted)
        return _by_counting(forward, network, wanted, free_bytes())
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)


def free_bytes() -> int:
    """The memory of the host that this process may still take: the machine's, or what its control group leaves."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    return max(0, free)


def _by_trying(forward: Passes, network: nn.Module, wanted: int) -> int:
    rows = wanted
    while rows > 0:
        try:
            torch.autograd.backward(forward(rows))
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            rows //= 2
        else:
            return rows
        finally:
            network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    return 0


def _by_counting(forward: Passes, network: nn.Module, wanted: int, free: int) -> int:
    if wanted <= _MORE:
        return wanted
    few, more = (_kept_bytes(forward, network, rows) for rows in (_FEW, _MORE))
    row = (more - few) / (_MORE - _FEW)
    gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    fixed = gradients + few - _FEW * row
    # The backward pass makes the gradient of what it takes away: at its widest, about as much again as one layer keeps.
    if fixed + row * wanted <= free:
        return wanted
    return max(0, min(wanted, int((free * _CALM - fixed) / max(row, 1.0))))


def _kept_bytes(forward: Passes, network: nn.Module, rows: int) -> int:
    """What a forward pass keeps for the backward pass, beside the network itself."""
    known = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = max(tensor.nbytes, kept.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward(rows)
    return sum(kept.values())
