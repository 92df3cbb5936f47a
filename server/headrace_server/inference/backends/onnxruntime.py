"""Runs ONNX programs with ONNX Runtime.

On the CPU its library runs them, without Python (`kernels/onnx_programs.py`).  Its Python package is used for what that
way does not know: other devices, and text; and where there is no library.  It is imported when the first such program
is opened.
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog

from headrace_server import _native
from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.shared_programs import SharedPrograms
from headrace_server.inference.nicely import run_nicely
from headrace_server.kernels import onnx_programs
from headrace_server.models.onnx_signature import ONNX_TYPES, dominant_precision
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.storage.file_state import FileState
from headrace_server.tensors import Array, DataType, Signature, Tensors

# NumPy has no such types of its own: they cross the border as their bits, with the type of the ONNX specification.
_AS_BITS = {DataType.BF16: np.uint16, DataType.FP8_E4M3: np.uint8, DataType.FP8_E5M2: np.uint8}
_ERRORS_ONLY = 3
# After these every further call on the device fails too, until the process ends: memory that cannot be corrected, and
# kernels that went astray.  Numbers of cudaError_t; the runtime writes "CUDA failure 700: …".
_STICKY = re.compile(r"CUDA (?:failure|error)[: ]+(214|220|700|702|709|710|714|715|716|717|718|719)\b", re.IGNORECASE)
CPU_PROVIDER = "CPUExecutionProvider"

T = TypeVar("T")

shared = SharedPrograms()
"""Those of the process: lanes of a version, and a registered program that is also a plan, are in memory once."""

log = structlog.get_logger()


class OnnxRuntimeBackend:
    """ONNX Runtime with a number of threads for each session.

    `providers` are asked for in order; what a session reports is what it got.
    """

    name = "onnxruntime"
    format = ArtifactFormat.ONNX

    def __init__(
        self, num_threads: int, providers: Sequence[str] = (CPU_PROVIDER,), copy: "Copy | None" = None
    ) -> None:
        self._num_threads = num_threads
        self._providers = list(providers)
        self._copy = copy

    def with_copy(self, copy: "Copy") -> "OnnxRuntimeBackend":
        """The same for a program of which there is a copy."""
        return OnnxRuntimeBackend(self._num_threads, self._providers, copy)

    def open(self, path: Path, signature: Signature) -> "OnnxRuntimeSession | PackageSession":
        """Read a program.  Raises what ONNX Runtime raises."""
        return open_program(path, signature, num_threads=self._num_threads, providers=self._providers, copy=self._copy)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a program that is optimised already."""

    path: Path
    lost: Callable[[], object]
    """To be called when it cannot be opened, from any thread."""


def open_program(
    path: Path,
    signature: Signature,
    *,
    num_threads: int,
    providers: Sequence[str] = (CPU_PROVIDER,),
    precision: Precision | None = None,
    copy: Copy | None = None,
) -> "OnnxRuntimeSession | PackageSession":
    """A program with so many threads for each run.  `precision` is read from its weights unless it is given.

    It is opened from `copy` where that is given and can be opened.  Raises what ONNX Runtime raises.
    """
    runs_in = precision or dominant_precision(path)
    has_text = any(spec.data_type is DataType.STRING for spec in (*signature.inputs, *signature.outputs))
    if [*providers] != [CPU_PROVIDER] or has_text or not onnx_programs.can_open():
        return open_with_package(path, signature, num_threads=num_threads, providers=providers, precision=runs_in)

    opened = partial(
        onnx_programs.open_program,
        num_threads=num_threads,
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
    )

    def build() -> _native.OnnxProgram:
        if copy is not None:
            try:
                return opened(copy.path, optimises=False)
            except _native.OnnxRuntimeError as error:
                copy.lost()
                log.warning("onnxruntime.copy_lost", problem=str(error))
        return opened(path)

    program = _opened(path, num_threads, lambda: _built(build, num_threads))
    return OnnxRuntimeSession(program, signature, runs_in)


def _opened(path: Path, num_threads: int, build: Callable[[], _native.OnnxProgram]) -> _native.OnnxProgram:
    # Runs with one thread of their own do not meet in a program; those with helpers would wait for each other's.
    return shared.open(FileState.of(path), build) if num_threads == 1 and path.exists() else build()


def open_with_package(
    path: Path, signature: Signature, *, num_threads: int, providers: Sequence[str], precision: Precision
) -> "PackageSession":
    """The same with the runtime's Python package, whatever the program is.  Raises what ONNX Runtime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    built_for = onnxruntime.get_available_providers()
    asked = [provider for provider in providers if provider in built_for]

    def build() -> Any:
        return onnxruntime.InferenceSession(str(path), options, providers=asked)

    inner = _built(build, num_threads) if asked == [CPU_PROVIDER] else build()
    return PackageSession(inner, signature, precision)


def _built(build: Callable[[], T], num_threads: int) -> T:
    # Reading and optimising a program takes a core for tenths of a second, which calls need more.  The threads of a
    # session that has some are as nice as the one that builds it: such a one is built where it is used.
    return run_nicely(build) if num_threads == 1 else build()


class OnnxRuntimeSession:
    """One ONNX program on the CPU.  Lanes run its batches with `program`, without Python."""

    provider = CPU_PROVIDER
    device = "cpu"

    def __init__(self, program: _native.OnnxProgram, signature: Signature, precision: Precision) -> None:
        self._program: _native.OnnxProgram | None = program
        self.precision = precision
        self._input_names = [spec.name for spec in signature.inputs]
        self._output_names = [spec.name for spec in signature.outputs]

    @property
    def program(self) -> _native.OnnxProgram | None:
        """What runs; None when it is closed."""
        return self._program

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory, or what ONNX Runtime raises."""
        assert self._program is not None
        try:
            outputs = self._program.run([inputs[name] for name in self._input_names])
        except Exception as error:
            if (judged := _judged(error, self.device)) is error:
                raise
            raise judged from error
        return dict(zip(self._output_names, outputs, strict=True))

    def judge(self, failure: Exception) -> Exception:
        """What `run` raises when its program has raised this."""
        return _judged(failure, self.device)

    def close(self) -> None:
        """Let go of the program, which is freed with its last reference."""
        self._program = None


class PackageSession:
    """One ONNX program that runs through the runtime's Python package."""

    def __init__(self, inner: Any, signature: Signature, precision: Precision) -> None:
        self._inner = inner
        self._output_names = [spec.name for spec in signature.outputs]
        self._specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
        self._has_bits = any(spec.data_type in _AS_BITS for spec in self._specs.values())
        # What was asked for says nothing: the runtime falls back to the CPU without a word.
        self.provider: str = inner.get_providers()[0]
        self.device = "cpu" if self.provider == CPU_PROVIDER else "cuda:0"
        self.precision = precision

    def run(self, inputs: Tensors) -> Tensors:
        """Run once.  Raises DeviceOutOfMemory, DeviceBroken, or what ONNX Runtime raises."""
        try:
            if self._has_bits:
                return self._run_as_bits(inputs)
            outputs = self._inner.run(self._output_names, dict(inputs))
        except Exception as error:
            if (judged := _judged(error, self.device)) is error:
                raise
            raise judged from error
        return dict(zip(self._output_names, outputs, strict=True))

    def close(self) -> None:
        """Let go of the session: ONNX Runtime frees it with its last reference."""
        self._inner = None

    def _run_as_bits(self, inputs: Tensors) -> Tensors:
        from onnxruntime import OrtValue

        feeds: dict[str, Any] = {}
        for name, array in inputs.items():
            data_type = self._specs[name].data_type
            feeds[name] = (
                OrtValue.ortvalue_from_numpy_with_onnx_type(_bits(array, data_type), ONNX_TYPES[data_type])
                if data_type in _AS_BITS
                else OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            )
        values = self._inner.run_with_ort_values(self._output_names, feeds)
        return {name: self._array(name, value) for name, value in zip(self._output_names, values, strict=True)}

    def _array(self, name: str, value: Any) -> Array:
        data_type = self._specs[name].data_type
        if data_type not in _AS_BITS:
            plain: Array = value.numpy()
            return plain
        # The runtime has no NumPy type to offer for these: their bytes are copied, and read as what they are.
        content = bytearray(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()))
        return np.frombuffer(content, data_type.dtype).reshape(value.shape())


def _bits(array: Array, data_type: DataType) -> Array:
    return np.ascontiguousarray(array).view(_AS_BITS[data_type])


def _judged(error: Exception, device: str) -> Exception:
    """Of an error of the runtime: what it means for the device, or itself."""
    text = str(error)
    if "out of memory" in text.lower() or "failed to allocate memory" in text.lower():
        return DeviceOutOfMemory(device)
    if _STICKY.search(text):
        return DeviceBroken(device, text)
    return error
