"""The first runs of a session, before any caller's: they pay for what is lazy, and show whether rows are apart."""

import numpy as np
import structlog

from headrace_server.inference.backends.backend import HasProgram, Session
from headrace_server.tensors import Array, DataType, Signature, Tensors, TensorSpec

log = structlog.get_logger()


def gives_way(session: Session) -> bool:
    """Whether the first runs of a session may be made by a thread that gives way to those that answer calls.

    What runs without Python may: whoever holds its lock must not give way, or all wait for him.
    """
    return isinstance(session, HasProgram) and session.program is not None


def warm_up(session: Session, signature: Signature) -> bool:
    """Run once with one row of zeros, and for a batchable model once with two.

    Returns whether rows of different callers may be computed together: whether two rows went in and two came out of
    every output.  A model that only says so runs its calls alone.

    Raises what the session raises for one row; except where zeros of that shape are only a guess, because a length
    other than the number of rows is free, or text is expected: then a failure says nothing.
    """
    is_guess = any(
        spec.data_type is DataType.STRING or -1 in (spec.shape[1:] if signature.is_batchable else spec.shape)
        for spec in signature.inputs
    )
    try:
        outputs = session.run(_zeros(signature, 1))
    except Exception as error:
        if not is_guess:
            raise
        log.warning("inference.warm_up_failed", problem=f"{type(error).__name__}: {error}")
        return signature.is_batchable
    if not signature.is_batchable or not _has_rows(outputs, 1):
        return False
    try:
        return _has_rows(session.run(_zeros(signature, 2)), 2)
    except Exception as error:  # noqa: BLE001 - one row works, so the model does
        log.warning("inference.warm_up_failed", rows=2, problem=f"{type(error).__name__}: {error}")
        return False


def _zeros(signature: Signature, rows: int) -> Tensors:
    return {spec.name: _zero(spec, rows) for spec in signature.inputs}


def _zero(spec: TensorSpec, rows: int) -> Array:
    shape = [1 if length == -1 else length for length in spec.shape]
    if spec.shape and spec.shape[0] == -1:
        shape[0] = rows
    return np.full(shape, "" if spec.data_type is DataType.STRING else 0, spec.data_type.dtype)


def _has_rows(outputs: Tensors, rows: int) -> bool:
    return all(array.ndim > 0 and len(array) == rows for array in outputs.values())
