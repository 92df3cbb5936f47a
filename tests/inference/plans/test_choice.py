"""Which plan runs, and why."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from headrace_server.inference.plans.choice import Decision, decide, is_needed
from headrace_server.inference.plans.difference import Difference
from headrace_server.inference.plans.measurement import Arrangement, Measurement, Source, Speed, Trial
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.timing import time_in_turns
from headrace_server.precision import Precision, Tolerances
from tests.doubles.scripted_blocks import ScriptedBlocks

BASE = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
INT8 = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.INT8, form=Form.DYNAMIC)
BF16 = Plan(runtime=Runtime.TORCH, precision=Precision.BF16)
BF16_NORMS = BF16.model_copy(update={"keeps_norms": True})
COMPILED = BF16.model_copy(update={"form": Form.COMPILED})
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ALL = Tolerances(max_relative_error=1e9, min_cosine=-1, min_agreement=0, max_metric_loss=1e9)


def off_by(relative: float = 0.0, nonfinite: int = 0) -> Difference:
    return Difference(
        rows=8, max_absolute=relative, mean_absolute=0, max_relative=relative, min_cosine=1, agreement=None,
        num_nonfinite=nonfinite,
    )  # fmt: skip


def trial(
    plan: Plan,
    seconds: dict[int, float],
    error: float = 0.0,
    *,
    wide: float = 0.6,
    nonfinite: int = 0,
    problem: str = "",
) -> Trial:
    """`seconds` by rows with one thread; with two it takes `wide` of that."""
    if problem:
        return Trial(plan=plan, problem=problem)
    speeds = [Speed(rows=rows, threads=1, seconds=value) for rows, value in seconds.items()]
    speeds += [Speed(rows=rows, threads=2, seconds=value * wide) for rows, value in seconds.items()]
    arrangements = (
        Arrangement(sessions=1, threads=2, rows=8, rows_per_second=8 / (seconds[8] * wide)),
        Arrangement(sessions=2, threads=1, rows=8, rows_per_second=16 / seconds[8]),
    )
    differences = (off_by(error, nonfinite),)
    return Trial(plan=plan, differences=differences, speeds=tuple(speeds), arrangements=arrangements)


def measured(*trials: Trial) -> Measurement:
    return Measurement(
        environment={}, source=Source.TRAINING, num_rows=8, reference="trained network", trials=trials, seconds=1,
        measured_at=NOON,
    )  # fmt: skip


def decided(*trials: Trial, wanted: Precision = Precision.AUTO, tolerances: Tolerances | None = None) -> Decision:
    return decide(measured(*trials), wanted, tolerances or Tolerances(), 64)


SLOW = {1: 1.0, 8: 8.0, 32: 32.0}
FAST = {1: 0.4, 8: 3.0, 32: 12.0}


def test_the_fastest_within_the_tolerances_runs() -> None:
    decision = decided(trial(BASE, SLOW), trial(INT8, FAST, 0.01), trial(BF16, {1: 0.1, 8: 1.0, 32: 4.0}, 0.5))

    assert decision.plans == (INT8,)
    assert list(decision.refusals) == ["torch-bf16"]
    assert "relative error is 0.5, tolerated is 0.05" in decision.refusals["torch-bf16"]
    assert decision.why == "the fastest within the tolerances of 3 that were tried"


def test_of_plans_that_run_beside_each_other_differently_the_one_that_answers_most_rows_runs() -> None:
    alone = trial(BF16, {1: 0.4, 8: 3.0})
    beside = trial(COMPILED, {1: 0.35, 8: 2.8}).model_copy(
        update={"arrangements": (Arrangement(sessions=2, threads=1, rows=8, rows_per_second=8.0),)}
    )

    decision = decided(trial(BASE, {1: 1.0, 8: 8.0}), alone, beside)

    assert decision.plans == (COMPILED,)


def test_each_size_of_batch_has_the_plan_that_is_fastest_for_it() -> None:
    decision = decided(
        trial(BASE, SLOW), trial(INT8, {1: 0.5, 8: 3.0, 32: 12.0}), trial(BF16, {1: 0.2, 8: 5.0, 32: 20.0})
    )

    assert [(bucket.max_rows, bucket.plan) for bucket in decision.buckets] == [(1, BF16), (32, INT8)]
    assert [decision.plan_for(rows) for rows in (1, 2, 32, 100)] == [BF16, INT8, INT8, INT8]


def test_what_is_within_the_noise_is_no_gain() -> None:
    barely = {rows: seconds * 0.95 for rows, seconds in SLOW.items()}

    decision = decided(trial(BASE, SLOW), trial(INT8, barely))

    assert decision.plans == (BASE,)
    assert decision.why == "nothing that may run is clearly faster"


def test_tolerances_that_nothing_meets_mean_fp32_and_say_why() -> None:
    decision = decided(trial(BASE, SLOW), trial(INT8, FAST, 0.01), tolerances=Tolerances(max_relative_error=0))

    assert decision.plans == (BASE,)
    assert decision.why.startswith(
        "none of the other 1 is within the tolerances: onnxruntime-int8-dynamic: the relative"
    )


def test_a_number_format_that_nothing_of_may_run_means_fp32_and_says_why() -> None:
    overflown = trial(BF16, FAST, nonfinite=3)

    decision = decided(trial(BASE, SLOW), trial(INT8, FAST), overflown, wanted=Precision.BF16)

    assert decision.plans == (BASE,)
    assert "no bf16 plan may run" in decision.why
    assert "3 elements overflow" in decision.why


def test_a_number_format_that_was_asked_for_runs_although_another_is_faster() -> None:
    decision = decided(trial(BASE, SLOW), trial(INT8, FAST), trial(BF16, SLOW), wanted=Precision.BF16)

    assert decision.plans == (BF16,)


def test_a_loss_of_the_recorded_measure_counts_whichever_way_is_better() -> None:
    base, other = trial(BASE, SLOW), trial(INT8, FAST)
    accuracy = measured(base.model_copy(update={"metric": 0.9}), other.model_copy(update={"metric": 0.8}))
    error = accuracy.model_copy(update={"is_higher_better": False})

    assert decide(accuracy, Precision.AUTO, Tolerances(), 64).plans == (BASE,)
    assert decide(error, Precision.AUTO, Tolerances(), 64).plans == (INT8,)


def test_what_cannot_be_made_or_run_is_refused_with_its_problem() -> None:
    decision = decided(trial(BASE, SLOW), trial(INT8, {}, problem="CannotPrepare: nothing"), trial(BF16, FAST))

    assert decision.plans == (BF16,)
    assert decision.refusals == {"onnxruntime-int8-dynamic": "CannotPrepare: nothing"}


def test_larger_batches_that_gain_nothing_are_not_made() -> None:
    assert decided(trial(BASE, {1: 1.0, 8: 4.0, 32: 16.0})).max_batch_rows == 8
    assert decided(trial(BASE, {1: 1.0, 8: 4.0, 32: 8.0})).max_batch_rows == 32
    assert decide(measured(trial(BASE, {1: 1, 8: 1.1, 32: 1.2})), Precision.AUTO, ALL, 16).max_batch_rows == 16


def test_a_lone_caller_gets_all_threads_and_many_get_many_runs() -> None:
    decision = decided(trial(BASE, SLOW))
    small = decided(trial(BASE, SLOW, wide=1.0))

    assert (decision.lone_threads, decision.busy_threads, decision.busy_sessions) == (2, 1, 2)
    assert small.lone_threads == 1


@pytest.mark.parametrize(
    ("narrow", "wide", "lone_threads"),
    [
        ([5.0, 5.1, 5.0], [5.2, 3.0, 3.1], 2),  # the first moments of the wide one were disturbed
        ([5.0, 5.1, 5.0], [5.2, 7.0, 8.8, 3.9, 3.1, 3.0], 2),  # nearly all were
        ([5.0, 9.0, 5.0], [5.2, 5.0, 5.1], 1),  # a disturbed narrow one makes the wide one no better
    ],
)
def test_moments_in_which_the_machine_did_something_else_do_not_decide_how_many_threads_a_lone_caller_gets(
    narrow: list[float], wide: list[float], lone_threads: int
) -> None:
    timed = time_in_turns(ScriptedBlocks(narrow=narrow, wide=wide).blocks)

    speeds = tuple(
        Speed(rows=1, threads=threads, seconds=timed[side]) for threads, side in ((1, "narrow"), (2, "wide"))
    )

    assert decided(trial(BASE, SLOW).model_copy(update={"speeds": speeds})).lone_threads == lone_threads


def test_a_program_that_fails_on_its_rows_runs_all_the_same_and_says_so() -> None:
    decision = decided(trial(BASE, {}, problem="Fail: no such index"))

    assert (decision.plans, decision.max_batch_rows) == ((BASE,), 1)
    assert "cannot be measured: Fail: no such index" in decision.why


def test_norms_in_32_bits_are_tried_only_where_they_may_rescue() -> None:
    good, bad = trial(BF16, FAST, 0.01), trial(BF16, FAST, nonfinite=1)

    assert not is_needed(BF16_NORMS, [good], Tolerances())
    assert is_needed(BF16_NORMS, [bad], Tolerances())
    assert is_needed(BF16_NORMS, [good], Tolerances(max_relative_error=0.001))


def test_what_overflows_is_not_compiled() -> None:
    assert not is_needed(COMPILED, [trial(BF16, FAST, nonfinite=1)], ALL)
    assert is_needed(COMPILED, [trial(BF16, FAST, 0.5)], Tolerances())
    assert is_needed(COMPILED, [], Tolerances())


PLANS = (INT8, BF16, COMPILED)
figures = st.builds(
    lambda one, eight, many, error, lost: ({1: one, 8: eight, 32: many}, error, lost),
    st.floats(0.001, 10), st.floats(0.001, 10), st.floats(0.001, 10), st.floats(0, 1), st.booleans(),
)  # fmt: skip


@given(
    st.lists(figures, min_size=len(PLANS), max_size=len(PLANS)),
    figures,
    st.floats(0, 1),
    st.sampled_from(list(Precision)),
)
def test_whatever_was_measured_only_what_is_tolerated_runs_and_every_size_has_a_plan(
    others: list[tuple[dict[int, float], float, bool]],
    first: tuple[dict[int, float], float, bool],
    tolerated: float,
    wanted: Precision,
) -> None:
    trials = [trial(BASE, first[0])]
    trials += [
        trial(plan, seconds, error, nonfinite=int(lost))
        for plan, (seconds, error, lost) in zip(PLANS, others, strict=True)
    ]
    tolerances = Tolerances(max_relative_error=tolerated, min_cosine=-1)

    decision = decide(measured(*trials), wanted, tolerances, 64)

    errors = {one.plan: one.worst_difference() for one in trials}
    for rows in range(1, 100):
        plan = decision.plan_for(rows)
        assert plan == BASE or (errors[plan].max_relative <= tolerated and not errors[plan].num_nonfinite)
        assert wanted is Precision.AUTO or plan == BASE or plan.precision is wanted
    assert 1 <= decision.max_batch_rows <= 64
    assert decision.why
    assert [bucket.max_rows for bucket in decision.buckets] == sorted({bucket.max_rows for bucket in decision.buckets})


@pytest.mark.parametrize("plan", [BASE, INT8, BF16, BF16_NORMS, COMPILED])
def test_facts_survive_the_way_through_the_database(plan: Plan) -> None:
    facts = measured(trial(plan, SLOW, float("inf")))

    assert Measurement.model_validate(facts.model_dump(mode="json")) == facts
