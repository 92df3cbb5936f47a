"""Cuts away padding before it is computed: columns that a mask says nobody reads, in steps of so many.

A model that takes sequences of any length takes those of a batch at one length, filled up with padding that its mask
input marks with zeros.  Padding costs as much as anything else.  Whether it may be cut is not believed: while a version
is measured, its program is run with more padding, and must answer the same.
"""

import numpy as np

from headrace_server.inference.backends.backend import Session
from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec

STEP = 16
"""Lengths are rounded up to multiples of this: compilers and caches of kernels see few of them."""
_NAMES = frozenset({"attention_mask", "input_mask", "padding_mask", "mask"})
_TOLERANCE = 1e-4


def find_mask(session: Session, signature: Signature, inputs: Tensors) -> str:
    """The input whose zeros may be cut away; empty when there is none, or when answers depend on padding.

    `inputs` are calibration rows.  Raises what the session raises.
    """
    masks = [spec for spec in signature.inputs if spec.name in _NAMES and _is_sequence(spec) and len(spec.shape) == 2]
    others = [spec for spec in signature.inputs if _is_sequence(spec)]
    if len(masks) != 1 or len(others) < 2 or any(-1 in spec.shape[1:] for spec in signature.outputs):
        return ""
    mask = masks[0].name
    lengths = {inputs[spec.name].shape[1] for spec in others}
    if len(lengths) != 1:
        return ""
    full = {**inputs, mask: np.ones_like(inputs[mask])}
    padded = {
        name: np.pad(array, [(0, 0), (0, STEP)] + [(0, 0)] * (array.ndim - 2)) if _is_long(name, others) else array
        for name, array in full.items()
    }
    wanted, found = session.run(full), session.run(padded)
    return mask if all(_are_close(wanted[spec.name], found[spec.name]) for spec in signature.outputs) else ""


def without_padding(inputs: Tensors, mask: str, signature: Signature) -> Tensors:
    """The same rows without the columns at the end that no row's mask reads."""
    length = inputs[mask].shape[1]
    read = np.flatnonzero((inputs[mask] != 0).any(axis=0))
    needed = int(read[-1]) + 1 if read.size else 1
    kept = min(-(-needed // STEP) * STEP, length)
    if kept == length:
        return inputs
    long = [spec for spec in signature.inputs if _is_sequence(spec)]
    return {
        name: np.ascontiguousarray(array[:, :kept]) if _is_long(name, long) and array.shape[1] == length else array
        for name, array in inputs.items()
    }


def _is_sequence(spec: TensorSpec) -> bool:
    return len(spec.shape) >= 2 and spec.shape[:2] == (-1, -1) and spec.data_type is not DataType.STRING


def _is_long(name: str, sequences: list[TensorSpec]) -> bool:
    return any(spec.name == name for spec in sequences)


def _are_close(wanted: Array, found: Array) -> bool:
    if wanted.shape != found.shape:
        return False
    if wanted.dtype.kind in "iub":
        return bool(np.array_equal(wanted, found))
    scale = float(np.abs(wanted.astype(np.float64)).max(initial=0.0))
    return bool(
        np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max(initial=0.0) <= _TOLERANCE * max(scale, 1e-9)
    )
