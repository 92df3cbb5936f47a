"""Runs torch.export programs (.pt2) with PyTorch.

The only module of the server process that knows torch, and it imports it when the first such program is opened.
A program can carry code: whether a file may be opened at all is decided where it is registered, in `models/`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.errors import DeviceOutOfMemory, InvalidModel
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


class TorchExportBackend:
    """PyTorch with a number of threads for each session."""

    name = "torch"
    format = ArtifactFormat.TORCH_EXPORT

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def open(self, path: Path, signature: Signature) -> "TorchExportSession":
        """Read a program.  Raises InvalidModel when it has other inputs or outputs, or what torch raises."""
        import torch

        # For this thread: the calling thread is the lane, and the only one that will run the program.
        torch.set_num_threads(self._num_threads)
        own = read_signature(path)
        inputs = _in_order_of(own.inputs, signature.inputs, "inputs")
        outputs = _in_order_of(own.outputs, signature.outputs, "outputs")
        return TorchExportSession(torch.export.load(str(path)), inputs, outputs)


class TorchExportSession:
    """One opened program, whose inputs and outputs are flat lists in its own order."""

    def __init__(self, program: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        import torch

        self._torch = torch
        self._inputs, self._outputs = inputs, outputs
        self._call_spec = program.call_spec
        self._module = program.module()
        weights = [*program.state_dict.values()]
        self._device = weights[0].device if weights else torch.device("cpu")
        self.device = f"{self._device.type}:{self._device.index or 0}" if self._device.type != "cpu" else "cpu"
        self.precision = self._dominant_precision(weights)

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory or what torch raises."""
        torch = self._torch
        flat = [self._tensor(inputs[spec.name], spec.data_type) for spec in self._inputs]
        args, keywords = torch.utils._pytree.tree_unflatten(flat, self._call_spec.in_spec)  # noqa: SLF001
        try:
            with torch.inference_mode():
                result = self._module(*args, **keywords)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(self.device) from error
        results, _ = torch.utils._pytree.tree_flatten(result)  # noqa: SLF001 - as torch.export itself does
        return {
            spec.name: self._array(value, spec.data_type) for spec, value in zip(self._outputs, results, strict=True)
        }

    def close(self) -> None:
        """Let go of the program and its weights."""
        self._module = None

    def _tensor(self, array: Array, data_type: DataType) -> Any:
        if not (array.flags.writeable and array.flags.c_contiguous):
            array = np.array(array)  # torch takes no memory that it may not write to
        if data_type in _AS_BITS:
            bits, name = _AS_BITS[data_type]
            return self._torch.from_numpy(array.view(bits)).view(getattr(self._torch, name)).to(self._device)
        return self._torch.from_numpy(array).to(self._device)

    def _array(self, value: Any, data_type: DataType) -> Array:
        value = value.detach().cpu()
        array: Array
        if data_type in _AS_BITS:
            array = value.contiguous().view(getattr(self._torch, _AS_BITS[data_type][0])).numpy()
            return array.view(data_type.dtype)
        array = value.numpy()
        return array

    def _dominant_precision(self, weights: list[Any]) -> Precision:
        elements: dict[Any, int] = {}
        for tensor in weights:
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.numel()
        known = {self._torch.float16: Precision.FP16, self._torch.bfloat16: Precision.BF16}
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
