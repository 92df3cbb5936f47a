"""Runs torch.export programs on a GPU, compiled or not, with a recorded graph for each size of batch.

The rows of a batch, of all inputs, are put into one piece of pinned memory and brought to the device in one copy, as
their callers sent them.  There they are gathered to the fixed addresses of the graph of the next larger size, converted
to what the program computes in on the way, and the graph replays every kernel with one call of the driver.  Rows beyond
the batch hold what an earlier batch left there; their results are not read.  A shape gets its graph when it comes for
the second time, and runs without one before.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.card import Card, CudaCard
from headrace_server.inference.backends.compiled_library import CompiledLibrary
from headrace_server.inference.backends.on_streams import CudaWitness, OnStreams
from headrace_server.inference.backends.torch_export import order_of, to_numpy, to_torch
from headrace_server.precision import Precision
from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec

MOST_GRAPHS = 16
"""Each keeps the memory of its inputs and results."""
MOST_SHAPES = 64
"""That are remembered as having come once."""
LARGEST_BUCKET = 1024
_ALIGNMENT = 256
"""Bytes at which inputs begin in the staging memory: what the device copies fastest from."""
_SHORT = {Precision.BF16: ("bfloat16", DataType.BF16), Precision.FP16: ("float16", DataType.FP16)}


def open_on_gpu(
    path: Path, signature: Signature, *, device: str, precision: Precision, keeps_norms: bool
) -> "GraphSession":
    """A program on a GPU.  Raises InvalidModel, DeviceOutOfMemory, or what torch raises."""
    import torch
    from torch.export.passes import move_to_device_pass

    card = CudaCard(device)
    with card.working():
        program = move_to_device_pass(torch.export.load(str(path)), device)
    call = flat_call(program, precision, keeps_norms=keeps_norms)
    return GraphSession(
        call, order_of(path, signature), lambda: CudaCard(device), precision, is_batchable=signature.is_batchable
    )


def open_compiled_on_gpu(
    path: Path, source: Path, signature: Signature, *, device: str, precision: Precision
) -> "GraphSession":
    """A library that was compiled ahead of time from the program `source` for this kind of GPU.

    Raises CompiledLibraryFailed, OSError or BadZipFile when it is damaged or was made for another machine,
    DeviceBroken, DeviceOutOfMemory.
    """
    card = CudaCard(device)
    with card.working():
        library = OnStreams(CompiledLibrary(path, 1, device), CudaWitness(device))
    order = order_of(source, signature)
    return GraphSession(library, order, lambda: CudaCard(device), precision, is_batchable=signature.is_batchable)


def flat_call(program: Any, precision: Precision, *, keeps_norms: bool) -> Callable[[list[Any]], Sequence[Any]]:
    """A program from a flat list of inputs to one of outputs; in shorter floats it takes its inputs in those."""
    import torch

    if precision in _SHORT:
        from headrace_server.inference.backends.torch_lowering import lower

        module: Any = lower(program, getattr(torch, _SHORT[precision][0]), keeps_norms=keeps_norms, takes_short=True)
    else:
        module = program.module()
    call_spec = program.call_spec

    def call(flat: list[Any]) -> Sequence[Any]:
        args, keywords = torch.utils._pytree.tree_unflatten(flat, call_spec.in_spec)  # noqa: SLF001
        results, _ = torch.utils._pytree.tree_flatten(module(*args, **keywords))  # noqa: SLF001 - as torch.export does
        return results

    return call


@dataclass(slots=True)
class _Graph:
    inputs: list[Any]
    """At the addresses that the graph reads, in the program's own types."""
    outputs: Sequence[Any]
    replay: Callable[[], None]


@dataclass(slots=True)
class _Staging:
    """The same number of bytes in pinned memory and on the device."""

    nbytes: int
    staged: Any
    bytes: Array
    """The staged ones, to write to."""
    reserved: Any


class GraphSession:
    """One opened program on one GPU.  Used and closed by one thread, which owns the stream; others have twins of it."""

    def __init__(
        self,
        call: Callable[[list[Any]], Sequence[Any]],
        order: tuple[list[TensorSpec], list[TensorSpec]],
        open_card: Callable[[], Card],
        precision: Precision,
        *,
        is_batchable: bool,
    ) -> None:
        """`call` takes inputs on the device in the types of `order`, FP32 ones in those of `precision`."""
        self._call = call
        self._order = order
        self._inputs, self._outputs = order
        self._types = [_type_inside(spec.data_type, precision) for spec in self._inputs]
        self._open_card = open_card
        self._card = open_card()
        self._is_batchable = is_batchable
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], _Graph] = OrderedDict()
        self._seen: OrderedDict[tuple[tuple[int, ...], ...], None] = OrderedDict()
        self._staging: _Staging | None = None
        self.device = self._card.device
        self.precision = precision

    def twin(self) -> "GraphSession":
        """A session of another lane with the same weights, and with a stream, staging memory and graphs of its own."""
        return GraphSession(self._call, self._order, self._open_card, self.precision, is_batchable=self._is_batchable)

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory, DeviceBroken, or what torch raises."""
        rows = len(inputs[self._inputs[0].name]) if self._is_batchable else 0
        try:
            with self._card.working():
                if 0 < rows <= LARGEST_BUCKET:
                    bucket = 1 << (rows - 1).bit_length()
                    key = tuple((bucket, *inputs[spec.name].shape[1:]) for spec in self._inputs)
                    if key in self._graphs or self._has_come_before(key):
                        return self._run_graph(inputs, rows, key)
                return self._run_alone(inputs)
        except DeviceOutOfMemory:
            self._let_go()
            raise

    def close(self) -> None:
        """Give graphs, staging memory and, with the last twin, the weights back."""
        self._let_go()  # first the graphs: they run code that goes with the last call
        self._call = _closed

    def _let_go(self) -> None:
        self._graphs.clear()
        self._staging = None
        self._card.forget()

    def _has_come_before(self, key: tuple[tuple[int, ...], ...]) -> bool:
        if key in self._seen:
            del self._seen[key]
            return True
        self._seen[key] = None
        if len(self._seen) > MOST_SHAPES:
            self._seen.popitem(last=False)
        return False

    def _run_alone(self, inputs: Tensors) -> dict[str, Array]:
        import torch

        flat = []
        for spec, data_type in zip(self._inputs, self._types, strict=True):
            tensor = to_torch(inputs[spec.name], spec.data_type).to(self.device, non_blocking=True)
            flat.append(tensor if data_type is spec.data_type else tensor.to(_torch_type(torch, data_type)))
        return self._arrays(self._call(flat), None)

    def _run_graph(self, inputs: Tensors, rows: int, key: tuple[tuple[int, ...], ...]) -> dict[str, Array]:
        addresses = self._upload(inputs)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._record(addresses, rows, key)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        self._fill(graph.inputs, addresses, rows)
        graph.replay()
        return self._arrays(graph.outputs, rows)

    def _upload(self, inputs: Tensors) -> list[int]:
        """Bring all inputs over in one copy; returns where each then lies."""
        offsets, end = [], 0
        for spec in self._inputs:
            offsets.append(end)
            end += -(-inputs[spec.name].nbytes // _ALIGNMENT) * _ALIGNMENT
        staging = self._staging
        if staging is None or staging.nbytes < end:
            self._staging = None  # first the old one, then the new one
            nbytes = max(1 << (end - 1).bit_length(), _ALIGNMENT)
            staged = self._card.stage(nbytes)
            staging = self._staging = _Staging(nbytes, staged, staged.numpy(), self._card.reserve(nbytes))
        for spec, offset in zip(self._inputs, offsets, strict=True):
            array = inputs[spec.name]
            place = staging.bytes[offset : offset + array.nbytes]
            np.copyto(place.view(array.dtype).reshape(array.shape), array)
        self._card.upload(staging.staged, staging.reserved, end)
        return [staging.reserved.data_ptr() + offset for offset in offsets]

    def _fill(self, fixed: list[Any], addresses: list[int], rows: int) -> None:
        for spec, data_type, into, address in zip(self._inputs, self._types, fixed, addresses, strict=True):
            row_elements = into[:1].numel()
            self._card.gather(address, rows, spec.data_type, into, data_type, row_elements)

    def _record(self, addresses: list[int], rows: int, shapes: Sequence[tuple[int, ...]]) -> _Graph:
        import torch

        fixed = [
            torch.zeros(shape, dtype=_torch_type(torch, data_type), device=self.device)
            for shape, data_type in zip(shapes, self._types, strict=True)
        ]
        self._fill(fixed, addresses, rows)
        for tensor in fixed:  # real rows everywhere: an index of zero might not be allowed
            for first in range(rows, len(tensor), rows):
                tensor[first : first + rows] = tensor[: min(rows, len(tensor) - first)]
        outputs, replay = self._card.record(lambda: self._call(fixed))
        return _Graph(fixed, outputs, replay)

    def _arrays(self, results: Sequence[Any], rows: int | None) -> dict[str, Array]:
        values = self._card.download([value[:rows] if rows is not None else value for value in results])
        return {spec.name: to_numpy(value, spec.data_type) for spec, value in zip(self._outputs, values, strict=True)}


def _type_inside(data_type: DataType, precision: Precision) -> DataType:
    """What the program takes for an input of the signature."""
    return _SHORT[precision][1] if data_type is DataType.FP32 and precision in _SHORT else data_type


def _torch_type(torch: Any, data_type: DataType) -> Any:
    return to_torch(np.zeros((), data_type.dtype), data_type).dtype


def _closed(_: list[Any]) -> Sequence[Any]:
    raise AssertionError("a closed session was run")
