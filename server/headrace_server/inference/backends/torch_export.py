"""Runs torch.export programs (.pt2) with PyTorch: as they are, in shorter floats, or compiled ahead of time.

With `torch_lowering` and `torch_graphs` the only modules of the server process that know torch; it is imported when the
first such program is opened.  A program can carry code: whether a file may be opened at all is decided where it is
registered, in `models/`.  Compiled programs are made by this server, and checked by their digest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.errors import DeviceOutOfMemory, InvalidModel
from headrace_server.inference.backends.torch_threads import rest, use_threads
from headrace_server.models.torch_signature import read_signature
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec

# NumPy has no such types of its own: their bits cross the border.
_AS_BITS = {
    DataType.BF16: ("uint16", "bfloat16"),
    DataType.FP8_E4M3: ("uint8", "float8_e4m3fn"),
    DataType.FP8_E5M2: ("uint8", "float8_e5m2"),
}
_NAMES = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}


class TorchExportBackend:
    """PyTorch with a number of threads for each session."""

    name = "torch"
    format = ArtifactFormat.TORCH_EXPORT

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def open(self, path: Path, signature: Signature) -> "TorchSession":
        """Read a program.  Raises InvalidModel when it has other inputs or outputs, or what torch raises."""
        return open_program(path, signature, num_threads=self._num_threads)


def open_program(
    path: Path,
    signature: Signature,
    *,
    num_threads: int,
    precision: Precision = Precision.FP32,
    keeps_norms: bool = False,
) -> "TorchSession":
    """A program as it is (FP32), or computing in shorter floats, its normalisations in 32 bits if so wanted.

    Raises InvalidModel when it has other inputs or outputs, or what torch raises.
    """
    import torch

    use_threads(num_threads)
    order = order_of(path, signature)
    program = torch.export.load(str(path))
    weights = [*program.state_dict.values()]
    device = weights[0].device if weights else torch.device("cpu")
    call_spec = program.call_spec
    if precision in _NAMES:
        from headrace_server.inference.backends.torch_lowering import lower

        module = lower(program, getattr(torch, _NAMES[precision]), keeps_norms=keeps_norms)
    else:
        module, precision = program.module(), _dominant_precision(weights)

    def call(flat: list[Any]) -> Sequence[Any]:
        args, keywords = torch.utils._pytree.tree_unflatten(flat, call_spec.in_spec)  # noqa: SLF001
        results, _ = torch.utils._pytree.tree_flatten(module(*args, **keywords))  # noqa: SLF001 - as torch.export does
        return results

    return TorchSession(call, order, device=device, precision=precision, num_threads=num_threads)


def open_compiled(
    path: Path, source: Path, signature: Signature, *, num_threads: int, precision: Precision, num_runners: int = 1
) -> "TorchSession":
    """A library that was compiled ahead of time from the program `source`, for so many runs at the same time.

    Raises CompiledLibraryFailed, and OSError or BadZipFile when it is damaged or was made for another machine.
    """
    import torch

    from headrace_server.inference.backends.compiled_library import CompiledLibrary

    use_threads(num_threads)
    library = CompiledLibrary(path, num_runners)
    order = order_of(source, signature)
    return TorchSession(
        library, order, device=torch.device("cpu"), precision=precision, num_threads=num_threads, closed=library.close
    )


def order_of(path: Path, signature: Signature) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of the version's signature in the order of the program.  Raises InvalidModel."""
    own = read_signature(path)
    return (
        _in_order_of(own.inputs, signature.inputs, "inputs"),
        _in_order_of(own.outputs, signature.outputs, "outputs"),
    )


class TorchSession:
    """One opened program, whose inputs and outputs are flat lists in its own order."""

    def __init__(
        self,
        call: Callable[[list[Any]], Sequence[Any]],
        order: tuple[list[TensorSpec], list[TensorSpec]],
        *,
        device: Any,
        precision: Precision,
        num_threads: int,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`closed` is called when nothing runs any more."""
        import torch

        self._closed = closed
        self._torch = torch
        self._call: Callable[[list[Any]], Sequence[Any]] | None = call
        self._inputs, self._outputs = order
        self._device = device
        self._num_threads = num_threads
        self.device = f"{device.type}:{device.index or 0}" if device.type != "cpu" else "cpu"
        self.precision = precision

    def with_threads(self, num_threads: int) -> "TorchSession":
        """The same program with so many threads a run; closed before this one, which closes what they share."""
        assert self._call is not None
        return TorchSession(
            self._call,
            (self._inputs, self._outputs),
            device=self._device,
            precision=self.precision,
            num_threads=num_threads,
        )

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory or what torch raises."""
        torch = self._torch
        assert self._call is not None
        use_threads(self._num_threads)
        flat = [to_torch(inputs[spec.name], spec.data_type).to(self._device) for spec in self._inputs]
        try:
            with torch.inference_mode():
                results = self._call(flat)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.device) from error
        return {spec.name: to_numpy(value, spec.data_type) for spec, value in zip(self._outputs, results, strict=True)}

    def close(self) -> None:
        """Let go of the program and its weights."""
        if self._call is not None:
            self._call = None
            self._closed()
            rest()


def to_torch(array: Array, data_type: DataType) -> Any:
    """An array as a tensor, sharing its memory where that is possible."""
    import torch

    if not (array.flags.writeable and array.flags.c_contiguous):
        array = np.array(array)  # torch takes no memory that it may not write to
    if data_type in _AS_BITS:
        bits, name = _AS_BITS[data_type]
        return torch.from_numpy(array.view(bits)).view(getattr(torch, name))
    return torch.from_numpy(array)


def to_numpy(value: Any, data_type: DataType) -> Array:
    """A tensor as an array, sharing its memory where that is possible."""
    import torch

    value = value.detach().cpu()
    array: Array
    if data_type in _AS_BITS:
        array = value.contiguous().view(getattr(torch, _AS_BITS[data_type][0])).numpy()
        return array.view(data_type.dtype)
    array = value.numpy()
    return array


def _dominant_precision(weights: list[Any]) -> Precision:
    import torch

    elements: dict[Any, int] = {}
    for tensor in weights:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.numel()
    known = {torch.float16: Precision.FP16, torch.bfloat16: Precision.BF16}
    dtype = max(elements, key=lambda dtype: elements[dtype], default=None)
    return known.get(dtype, Precision.FP32) if dtype is not None else Precision.FP32


def _in_order_of(own: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...], what: str) -> list[TensorSpec]:
    """The tensors of the version's signature in the order of the program: by name where names agree, else by place."""
    by_name = {spec.name: spec for spec in wanted}
    if {spec.name for spec in own} == set(by_name):
        return [by_name[spec.name] for spec in own]
    if len(own) != len(wanted):
        raise InvalidModel(f"the program has {len(own)} {what}, its signature {len(wanted)}")
    return list(wanted)
