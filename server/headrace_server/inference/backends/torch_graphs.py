"""Runs torch.export programs on a GPU: a stream and staging memory of its own, and a CUDA graph for each size of batch.

A batch is copied into pinned memory, from there to fixed addresses on the device, where the graph of the next larger
size replays every kernel with one call of the driver.  Rows beyond the batch hold what an earlier batch left there;
their results are not read.  Shapes that come too seldom for a graph of their own run without one.

When the device runs out of memory, the batch is run in halves, and later batches are not larger than what fitted.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.torch_export import order_of, to_numpy, to_torch
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Signature, Tensors, TensorSpec

MOST_GRAPHS = 16
"""Each keeps the memory of its intermediate values."""
_LARGEST_BUCKET = 1024
_NAMES = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_WARM_UPS = 3
"""Runs before a graph is captured, in which libraries choose algorithms and take their workspaces."""


@dataclass(slots=True)
class _Graph:
    inputs: list[Any]
    """At the addresses that the graph reads."""
    staging: list[Any]
    """In pinned memory."""
    outputs: Sequence[Any]
    replay: Callable[[], None]


def open_on_gpu(
    path: Path, signature: Signature, *, device: str, precision: Precision, keeps_norms: bool
) -> "GraphSession":
    """A program on a GPU.  Raises InvalidModel, DeviceOutOfMemory, or what torch raises."""
    import torch
    from torch.export.passes import move_to_device_pass

    order = order_of(path, signature)
    try:
        program = move_to_device_pass(torch.export.load(str(path)), device)
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemory(device) from error
    call_spec = program.call_spec
    if precision in _NAMES:
        from headrace_server.inference.backends.torch_lowering import lower

        module = lower(program, getattr(torch, _NAMES[precision]), keeps_norms=keeps_norms)
    else:
        module = program.module()

    def call(flat: list[Any]) -> Sequence[Any]:
        args, keywords = torch.utils._pytree.tree_unflatten(flat, call_spec.in_spec)  # noqa: SLF001
        results, _ = torch.utils._pytree.tree_flatten(module(*args, **keywords))  # noqa: SLF001 - as torch.export does
        return results

    return GraphSession(call, order, device, precision, is_batchable=signature.is_batchable)


class GraphSession:
    """One opened program on one GPU.  Opened, used and closed by one thread, which owns the stream."""

    def __init__(
        self,
        call: Callable[[list[Any]], Sequence[Any]],
        order: tuple[list[TensorSpec], list[TensorSpec]],
        device: str,
        precision: Precision,
        *,
        is_batchable: bool,
    ) -> None:
        import torch

        self._torch = torch
        self._call = call
        self._inputs, self._outputs = order
        self._is_batchable = is_batchable
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], _Graph] = OrderedDict()
        self._most_rows = _LARGEST_BUCKET
        self.device = device
        self.precision = precision

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory for a single row, DeviceBroken, or what torch raises."""
        if not self._is_batchable:
            return self._attempt(inputs, 0)
        rows = len(next(iter(inputs.values())))
        parts = []
        start = 0
        while start < rows:
            count = min(rows - start, self._most_rows)
            try:
                parts.append(
                    self._attempt({name: array[start : start + count] for name, array in inputs.items()}, count)
                )
                start += count
            except DeviceOutOfMemory:
                if count == 1:
                    raise
                self._shrink(count)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Give graphs, staging memory and weights back."""
        self._graphs.clear()
        self._call = _closed
        self._torch.cuda.empty_cache()

    def _shrink(self, failed_rows: int) -> None:
        self._most_rows = max(failed_rows // 2, 1)
        self._graphs.clear()
        self._torch.cuda.empty_cache()

    def _attempt(self, inputs: Tensors, rows: int) -> dict[str, Array]:
        torch = self._torch
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                if rows == 0:
                    return self._run_alone(inputs)
                return self._run_graph(inputs, rows)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.device) from error
        except torch.AcceleratorError as error:
            # After such an error every further call on the device fails too, until the process ends.
            raise DeviceBroken(self.device, str(error)) from error

    def _run_alone(self, inputs: Tensors) -> dict[str, Array]:
        flat = [to_torch(inputs[spec.name], spec.data_type).to(self.device, non_blocking=True) for spec in self._inputs]
        return self._arrays(self._call(flat), None)

    def _run_graph(self, inputs: Tensors, rows: int) -> dict[str, Array]:
        bucket = min(1 << (rows - 1).bit_length(), _LARGEST_BUCKET)
        key = tuple((bucket, *inputs[spec.name].shape[1:]) for spec in self._inputs)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(inputs, key)
            self._graphs[key] = graph
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        for spec, staging, fixed in zip(self._inputs, graph.staging, graph.inputs, strict=True):
            staging[:rows].copy_(to_torch(inputs[spec.name], spec.data_type))
            fixed[:rows].copy_(staging[:rows], non_blocking=True)
        graph.replay()
        return self._arrays(graph.outputs, rows)

    def _capture(self, inputs: Tensors, shapes: tuple[tuple[int, ...], ...]) -> _Graph:
        torch = self._torch
        staging, fixed = [], []
        for spec, shape in zip(self._inputs, shapes, strict=True):
            example = to_torch(inputs[spec.name], spec.data_type)
            staging.append(torch.zeros(shape, dtype=example.dtype).pin_memory())
            rows = [index % len(example) for index in range(shape[0])]
            fixed.append(example[rows].to(self.device))  # real rows: an index of zero might not be allowed
        for _ in range(_WARM_UPS):
            self._call(fixed)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            outputs = self._call(fixed)
        return _Graph(fixed, staging, outputs, graph.replay)

    def _arrays(self, results: Sequence[Any], rows: int | None) -> dict[str, Array]:
        values = [value[:rows].to("cpu", non_blocking=True) for value in results]
        self._stream.synchronize()
        return {spec.name: to_numpy(value, spec.data_type) for spec, value in zip(self._outputs, values, strict=True)}


def _closed(_: list[Any]) -> Sequence[Any]:
    raise AssertionError("a closed session was run")
