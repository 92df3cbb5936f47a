from hypothesis import given, strategies as st

from headrace_server.trainers.recipe import EarlyStopping
from headrace_server.trainers.yardstick import Standing, Yardstick

VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


@given(values=VALUES, is_higher_better=st.booleans())
def test_the_best_is_the_first_of_the_extreme_values(values: list[float], is_higher_better: bool) -> None:
    yardstick = Yardstick("m", is_higher_better, None, Standing())

    verdicts = [yardstick.judge(step, {"m": value}) for step, value in enumerate(values, start=1)]

    extreme = max(values) if is_higher_better else min(values)
    assert yardstick.standing.best_metrics["m"] == extreme
    assert yardstick.standing.best_step == values.index(extreme) + 1
    assert [step for step, is_best in enumerate(verdicts, start=1) if is_best][-1] == yardstick.standing.best_step
    assert not yardstick.is_exhausted


def test_patience_counts_evaluations_that_gain_too_little() -> None:
    yardstick = Yardstick("m", False, EarlyStopping(patience=2, min_delta=0.1), Standing())

    exhausted = []
    for step, value in enumerate([1.0, 0.95, 0.85, 0.8, 0.78], start=1):
        yardstick.judge(step, {"m": value})
        exhausted.append(yardstick.is_exhausted)

    assert exhausted == [False, False, False, False, True]
    assert yardstick.standing.best_step == 5


def test_without_a_least_change_standing_still_is_no_progress() -> None:
    yardstick = Yardstick("m", True, EarlyStopping(patience=1), Standing())

    yardstick.judge(1, {"m": 0.5})
    assert not yardstick.is_exhausted
    assert yardstick.judge(2, {"m": 0.5}) is False
    assert yardstick.is_exhausted


@given(values=VALUES, cut=st.integers(0, 30))
def test_a_standing_that_was_saved_goes_on_as_if_it_never_was(values: list[float], cut: int) -> None:
    early_stopping = EarlyStopping(patience=3, min_delta=0.5)
    whole = Yardstick("m", True, early_stopping, Standing())
    first = Yardstick("m", True, early_stopping, Standing())

    for step, value in enumerate(values):
        if step == cut:
            first = Yardstick("m", True, early_stopping, Standing.model_validate_json(first.standing.model_dump_json()))
        assert first.judge(step, {"m": value}) == whole.judge(step, {"m": value})

    assert first.standing == whole.standing
