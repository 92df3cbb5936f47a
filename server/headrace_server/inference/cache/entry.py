"""How an answer is kept: a line of JSON that describes its outputs, then their bytes.  Never code, never a pickle.

What is read back may come from a store that others can write to: it counts only if it is, in every respect, an answer
that the version could have given.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec

LONGEST_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer that was kept."""

    outputs: Tensors
    """Read-only views of what was read."""
    made_at: float
    """When it was computed, in seconds since 1970."""


class Unreadable(Exception):
    """What was kept is not an answer of this version."""


def encode(outputs: Tensors, made_at: float) -> bytes:
    """An answer as bytes."""
    head, parts = [], []
    for name, array in outputs.items():
        data_type = DataType.of(array.dtype)
        if data_type is DataType.STRING:
            content = json.dumps(array.ravel().tolist()).encode()
        else:
            content = np.ascontiguousarray(array).tobytes()
        head.append([name, data_type.value, list(array.shape), len(content)])
        parts.append(content)
    return b"".join([json.dumps({"made_at": made_at, "outputs": head}).encode(), b"\n", *parts])


def decode(content: bytes, signature: Signature, output_names: Sequence[str]) -> Entry:
    """An answer back.  Raises Unreadable unless it has exactly the outputs that are asked for, as `signature` says."""
    specs = {spec.name: spec for spec in signature.outputs}
    wanted = list(dict.fromkeys(output_names)) or list(specs)
    at = content.find(b"\n", 0, LONGEST_HEAD_BYTES)
    try:
        head = json.loads(content[:at]) if at >= 0 else {}
        found: dict[str, Array] = {}
        place = at + 1
        for name, data_type, shape, length in head["outputs"]:
            found[name] = _read(content[place : place + length], specs[name], data_type, shape)
            place += length
        made_at = float(head["made_at"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if place != len(content) or found.keys() != set(wanted):
        raise Unreadable("it has other outputs, or more than they need")
    return Entry({name: found[name] for name in wanted}, made_at)


def _read(content: bytes, spec: TensorSpec, data_type: str, shape: list[int]) -> Array:
    fits = len(shape) == len(spec.shape) and all(
        have >= 0 and want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if data_type != spec.data_type.value or not fits:
        raise ValueError(f"{spec.name!r} is {data_type}{shape}")
    if spec.data_type is DataType.STRING:
        texts = json.loads(content)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{spec.name!r} is no text")
        array: Array = np.array([*texts, None], object)[:-1].reshape(shape)
        return array
    return np.frombuffer(content, spec.data_type.dtype).reshape(shape)
