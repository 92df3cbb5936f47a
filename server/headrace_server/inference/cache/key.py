"""What makes two predictions the same: everything that can change a bit of the answer, and nothing else.

The digest of the weights, the backend, the precision and the device that ran; the names, types, shapes and bytes of all
inputs; the outputs that were asked for.  A version that is swapped, or runs in another precision, has other keys, so
nothing has to be thrown away.  Priorities, deadlines and how numbers travel change no answer.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from headrace_server.inference.prediction import Provenance
from headrace_server.tensors import Array, DataType, Tensors

INLINE_BYTES = 256 << 10
"""Inputs up to this size are hashed on the loop, in about a quarter of a millisecond."""
LAYOUT = b"headrace 1\n"


async def fingerprint(inputs: Tensors, output_names: Sequence[str]) -> bytes:
    """What of the key belongs to the question.  Inputs must not change meanwhile."""
    size = sum(array.nbytes for array in inputs.values())
    if size > INLINE_BYTES:
        return await asyncio.to_thread(_fingerprint, inputs, output_names)
    return _fingerprint(inputs, output_names)


def key(provenance: Provenance, question: bytes) -> str:
    """What an answer is kept under, when this would run: 64 hexadecimal digits."""
    ran = [provenance.artifact_digest, provenance.backend, provenance.precision.value, provenance.device]
    return hashlib.blake2b(LAYOUT + json.dumps(ran).encode() + b"\n" + question, digest_size=32).hexdigest()


def _fingerprint(inputs: Tensors, output_names: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(inputs):
        array = inputs[name]
        content = _content(array)
        # Lengths and shapes are written before what they measure, so that no two questions run into each other.
        head = [name, DataType.of(array.dtype).value, list(array.shape), content.nbytes]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(content)
    digest.update(json.dumps(sorted(set(output_names))).encode())
    return digest.digest()


def _content(array: Array) -> memoryview:
    if array.dtype.kind in "UO":
        return memoryview(json.dumps(array.ravel().tolist()).encode())
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
