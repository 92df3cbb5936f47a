"""How far answers are apart."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from headrace_server.inference.plans.difference import measure_difference, why_intolerable
from headrace_server.precision import Tolerances
from headrace_server.tensors import DataType, Signature, TensorSpec

X = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2))
SCORES = TensorSpec(name="scores", data_type=DataType.FP32, shape=(-1, 3), class_names=("a", "b", "c"))
LABEL = TensorSpec(name="label", data_type=DataType.INT64, shape=(-1,))
VECTOR = TensorSpec(name="vector", data_type=DataType.FP32, shape=(-1, 3))
EXACT = np.array([[1.0, 2.0, 4.0], [3.0, 0.0, -4.0]], np.float32)


def signature(*outputs: TensorSpec) -> Signature:
    return Signature(inputs=(X,), outputs=outputs)


def test_equal_answers_have_no_difference() -> None:
    found = measure_difference({"vector": EXACT}, {"vector": EXACT.copy()}, signature(VECTOR))

    assert (found.rows, found.max_absolute, found.max_relative, found.agreement) == (2, 0, 0, None)
    assert found.min_cosine == pytest.approx(1)


def test_errors_are_relative_to_the_largest_element_of_the_output() -> None:
    near = EXACT + np.array([[0.2, 0, 0], [0, 0, 0]], np.float32)

    found = measure_difference({"vector": EXACT}, {"vector": near}, signature(VECTOR))

    assert found.max_absolute == pytest.approx(0.2, rel=1e-5)
    assert found.max_relative == pytest.approx(0.05, rel=1e-5)
    assert found.mean_absolute == pytest.approx(0.2 / 6, rel=1e-5)


def test_classes_agree_by_the_largest_score_and_by_the_label() -> None:
    near = EXACT[:, ::-1].copy()

    by_score = measure_difference({"scores": EXACT}, {"scores": near}, signature(SCORES))
    by_label = measure_difference({"label": np.array([1, 2])}, {"label": np.array([1, 3])}, signature(LABEL))

    assert by_score.agreement == 0
    assert (by_label.agreement, by_label.max_absolute) == (0.5, 0)


@pytest.mark.parametrize("lost", [np.inf, -np.inf, np.nan])
def test_what_overflows_is_never_tolerated(lost: float) -> None:
    near = EXACT.copy()
    near[1, 1] = lost

    found = measure_difference({"vector": EXACT}, {"vector": near}, signature(VECTOR))

    assert found.num_nonfinite == 1
    anything = Tolerances(max_relative_error=1e300, min_cosine=-1, min_agreement=0, max_metric_loss=1e300)
    assert "overflow" in why_intolerable(found, None, anything)


def test_infinity_that_the_exact_answer_has_too_is_no_difference() -> None:
    exact = np.array([[np.inf, 1.0, np.nan]], np.float32)

    found = measure_difference({"vector": exact}, {"vector": exact.copy()}, signature(VECTOR))

    assert (found.num_nonfinite, found.max_absolute) == (0, 0)


def test_rows_of_zeros_agree_with_each_other_only() -> None:
    zeros = np.zeros_like(EXACT)

    assert measure_difference({"vector": zeros}, {"vector": zeros}, signature(VECTOR)).min_cosine == 1
    assert measure_difference({"vector": zeros}, {"vector": EXACT}, signature(VECTOR)).min_cosine == 0


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"'vector' has the shape \[1, 3\], not \[2, 3\]"):
        measure_difference({"vector": EXACT}, {"vector": EXACT[:1]}, signature(VECTOR))


@pytest.mark.parametrize(
    ("tolerances", "why"),
    [
        (Tolerances(max_relative_error=0.01), "relative error"),
        (Tolerances(max_relative_error=1, min_cosine=0.99999), "cosine"),
        (Tolerances(max_relative_error=1, min_cosine=0, min_agreement=1), "agree"),
        (Tolerances(max_relative_error=1, min_cosine=0, min_agreement=0, max_metric_loss=0.1), "loses"),
    ],
)
def test_the_reason_names_the_figure_and_what_is_tolerated(tolerances: Tolerances, why: str) -> None:
    near = EXACT + np.array([[3.5, 0, 0], [0, 0, 0]], np.float32)
    found = measure_difference({"scores": EXACT}, {"scores": near}, signature(SCORES))

    assert why in why_intolerable(found, 0.2, tolerances)
    assert (
        why_intolerable(
            found, 0.05, Tolerances(max_relative_error=1, min_cosine=0, min_agreement=0.5, max_metric_loss=0.1)
        )
        == ""
    )


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    st.floats(0, 1e3, width=32),
)
def test_figures_of_any_answers_are_in_their_ranges(rows: list[list[float]], shift: float) -> None:
    exact = np.array(rows, np.float32)

    found = measure_difference({"scores": exact}, {"scores": exact + np.float32(shift)}, signature(SCORES))

    assert 0 <= found.mean_absolute <= found.max_absolute + 1e-9
    assert -1.0001 <= found.min_cosine <= 1.0001
    assert found.agreement is not None
    assert 0 <= found.agreement <= 1
