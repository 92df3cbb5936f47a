"""Rows that plans are judged with, in a safetensors file: what training stored with a version, or somebody supplied.

    inputs/{name}      one array for each input of the signature
    outputs/{name}     optional: what the trained network answered to these rows
    targets/{name}     optional: what should have been answered, for one output

Blocks: call it on a thread.  Inputs of text, and of types that NumPy does not have, cannot be stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from headrace_server.errors import InvalidModel
from headrace_server.tensors import Array, DataType, Signature, Tensors

CALIBRATION_FILE = "calibration.safetensors"
MOST_ROWS = 256
MOST_BYTES = 64 << 20
_LARGEST_FILE = 4 * MOST_BYTES
_NOT_STORED = frozenset({DataType.STRING, DataType.BF16, DataType.FP8_E4M3, DataType.FP8_E5M2})


@dataclass(frozen=True, slots=True)
class CalibrationRows:
    """Rows with what is known about their answers."""

    inputs: Tensors
    outputs: Tensors = field(default_factory=dict)
    """Of the trained network; empty when it is not at hand any more."""
    targets: Tensors = field(default_factory=dict)
    """What should have been answered; for at most one output."""

    @property
    def num_rows(self) -> int:
        """How many; 1 where the model takes no rows."""
        return next((len(array) for array in self.inputs.values() if array.ndim), 1)


def can_be_stored(signature: Signature) -> bool:
    """Whether all inputs are of types that the file can hold."""
    return not any(spec.data_type in _NOT_STORED for spec in signature.inputs)


def bounded(rows: CalibrationRows, signature: Signature) -> CalibrationRows:
    """The first rows, so many that they stay below the limits."""
    if not signature.is_batchable:
        return rows
    row_bytes = max(sum(array.nbytes for array in rows.inputs.values()) // max(rows.num_rows, 1), 1)
    count = max(min(rows.num_rows, MOST_ROWS, MOST_BYTES // row_bytes), 1)

    def cut(arrays: Tensors) -> dict[str, Array]:
        return {name: np.ascontiguousarray(array[:count]) for name, array in arrays.items()}

    return CalibrationRows(cut(rows.inputs), cut(rows.outputs), cut(rows.targets))


def write_rows(rows: CalibrationRows, path: Path) -> None:
    """Write a file.  Raises OSError."""
    parts: Mapping[str, Tensors] = {"inputs": rows.inputs, "outputs": rows.outputs, "targets": rows.targets}
    flat = {
        f"{part}/{name}": np.ascontiguousarray(array)
        for part, arrays in parts.items()
        for name, array in arrays.items()
    }
    save_file(flat, str(path))


def read_rows(path: Path, signature: Signature) -> CalibrationRows:
    """Read a file and check that its rows fit the signature.  Raises InvalidModel with what is wrong."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InvalidModel(f"{path.name} is larger than calibration rows may be")
        flat = load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InvalidModel(f"{path.name} cannot be read as safetensors: {error}") from error
    parts: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}, "targets": {}}
    for key, array in flat.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise InvalidModel(f"{path.name} holds {key!r}, which is no calibration row")
        parts[part][name] = array
    violations = signature.violations(parts["inputs"])
    if violations:
        raise InvalidModel(f"{path.name} does not fit the signature: {violations[0].field} {violations[0].description}")
    rows = CalibrationRows(parts["inputs"], parts["outputs"], parts["targets"])
    known = {spec.name for spec in signature.outputs}
    for name, array in (*rows.outputs.items(), *rows.targets.items()):
        if name not in known or array.ndim == 0 or len(array) != rows.num_rows:
            raise InvalidModel(f"{path.name} holds answers for {name!r} that do not go with its rows")
    if rows.outputs and set(rows.outputs) != known:
        raise InvalidModel(f"{path.name} does not hold every output of the trained network")
    return rows


def draw_rows(signature: Signature, num_rows: int = 64, free_length: int = 16, seed: int = 0) -> CalibrationRows:
    """Random rows that fit a signature: normal numbers, integers of 0 and 1, no text.

    Axes of any length other than the first get `free_length`.  They say how fast a plan is, and little about accuracy.
    """
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in signature.inputs:
        shape = [free_length if length == -1 else length for length in spec.shape]
        if spec.shape and spec.shape[0] == -1:
            shape[0] = num_rows if signature.is_batchable else 1
        if spec.data_type is DataType.STRING:
            array: Array = np.full(shape, "", object)
        elif spec.data_type.is_floating:
            array = generator.normal(size=shape).astype(spec.data_type.dtype)
        else:
            array = generator.integers(0, 2, shape).astype(spec.data_type.dtype)
        inputs[spec.name] = array
    return CalibrationRows(inputs)
