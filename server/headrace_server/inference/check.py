"""Whether inputs fit a version, found where it holds up nobody."""

import asyncio
from collections.abc import Sequence

from headrace_server.errors import InvalidTensor, Violation
from headrace_server.models.version import ModelVersion
from headrace_server.tensors import Signature, Tensors

INLINE_BYTES = 64 << 10
"""Inputs up to this size are checked on the loop: that is faster than going to a thread and back."""


async def check(version: ModelVersion, inputs: Tensors, output_names: Sequence[str]) -> int:
    """Raise InvalidTensor unless the inputs fit; return their size in bytes.

    Shapes and types are a glance.  Looking at every element of large inputs is done in a thread.
    """
    signature = version.signature
    size = sum(array.nbytes for array in inputs.values())
    looks_inside = any(spec.finite_only for spec in signature.inputs) or any(
        array.dtype == object for array in inputs.values()
    )
    if looks_inside and size > INLINE_BYTES:
        violations, size = await asyncio.to_thread(_look, signature, inputs, output_names)
    else:
        violations, size = _look(signature, inputs, output_names)
    if violations:
        raise InvalidTensor(violations, str(version.name))
    return size


def _look(signature: Signature, inputs: Tensors, output_names: Sequence[str]) -> tuple[list[Violation], int]:
    violations = signature.violations(inputs, output_names)
    if violations:
        return violations, 0
    size = 0
    for array in inputs.values():
        size += array.nbytes
        if array.dtype == object:
            size += sum(map(len, array.ravel().tolist()))
    return violations, size
