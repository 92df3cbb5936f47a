"""How far a plan's answers are from the 32-bit ones, and whether that is within what the owner tolerates."""

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from headrace_server.precision import Tolerances
from headrace_server.tensors import Array, Signature, Tensors, TensorSpec


class Difference(BaseModel):
    """Figures over all floating-point outputs of so many rows.  NaN and infinity differ from everything."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    rows: int
    max_absolute: float
    mean_absolute: float
    max_relative: float
    """The largest difference relative to the largest element of that output."""
    min_cosine: float
    """Over rows."""
    agreement: float | None
    """The share of rows whose class is the same; None where no output says a class."""
    num_nonfinite: int
    """Elements that are NaN or infinite although the 32-bit ones are not."""


def measure_difference(wanted: Tensors, got: Tensors, signature: Signature) -> Difference:
    """Compare outputs with the 32-bit ones.  Raises ValueError where their shapes differ."""
    largest = relative = total = 0.0
    count = nonfinite = rows = 0
    cosine = 1.0
    agreements: list[float] = []
    for spec in signature.outputs:
        want, have = wanted[spec.name], got[spec.name]
        if want.shape != have.shape:
            raise ValueError(f"{spec.name!r} has the shape {list(have.shape)}, not {list(want.shape)}")
        rows = len(want) if want.ndim else 1
        if _says_class(spec):
            agreements.append(_agreement(spec, want, have))
        if not spec.data_type.is_floating or want.size == 0:
            continue
        exact, near = want.astype(np.float64), have.astype(np.float64)
        is_lost = ~np.isfinite(near) & np.isfinite(exact)
        nonfinite += int(is_lost.sum())
        if is_lost.any():
            largest = relative = math.inf
            cosine = -1.0
            continue
        comparable = np.isfinite(exact)
        distance = np.abs(np.where(comparable, near, 0.0) - np.where(comparable, exact, 0.0))
        scale = float(np.abs(exact[comparable]).max(initial=0.0))
        largest = max(largest, float(distance.max()))
        relative = max(relative, float(distance.max()) / scale if scale > 0 else float(distance.max()))
        total, count = total + float(distance.sum()), count + distance.size
        cosine = min(cosine, _smallest_cosine(np.where(comparable, exact, 0.0), np.where(comparable, near, 0.0)))
    return Difference(
        rows=rows,
        max_absolute=largest,
        mean_absolute=total / count if count else 0.0,
        max_relative=relative,
        min_cosine=cosine,
        agreement=min(agreements, default=None),
        num_nonfinite=nonfinite,
    )


def why_intolerable(difference: Difference, metric_loss: float | None, tolerances: Tolerances) -> str:
    """Why a plan with these figures may not run; empty when it may."""
    if difference.num_nonfinite:
        return f"{difference.num_nonfinite} elements overflow to NaN or infinity in {difference.rows} rows"
    if difference.max_relative > tolerances.max_relative_error:
        return f"the relative error is {difference.max_relative:.2g}, tolerated is {tolerances.max_relative_error:g}"
    if difference.min_cosine < tolerances.min_cosine:
        return f"the cosine is {difference.min_cosine:.5f}, tolerated is {tolerances.min_cosine:g}"
    if difference.agreement is not None and difference.agreement < tolerances.min_agreement:
        return f"{difference.agreement:.1%} of the rows agree, tolerated is {tolerances.min_agreement:.1%}"
    if metric_loss is not None and metric_loss > tolerances.max_metric_loss:
        return f"the measure loses {metric_loss:.3g}, tolerated is {tolerances.max_metric_loss:g}"
    return ""


def _says_class(spec: TensorSpec) -> bool:
    return bool(spec.class_names) or not spec.data_type.is_floating


def _agreement(spec: TensorSpec, want: Array, have: Array) -> float:
    if spec.data_type.is_floating and want.ndim:
        want, have = want.argmax(-1), have.argmax(-1)
    return float((want == have).mean()) if want.size else 1.0


def _smallest_cosine(exact: Array, near: Array) -> float:
    rows = len(exact) if exact.ndim else 1
    first = exact.reshape(rows, -1).astype(np.float64)
    second = near.reshape(rows, -1).astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    is_zero = lengths == 0
    # Two rows of zeros agree; a row of zeros and another do not.
    same = (first == second).all(axis=1)
    cosines = np.where(is_zero, np.where(same, 1.0, 0.0), products / np.where(is_zero, 1.0, lengths))
    return float(cosines.min())
