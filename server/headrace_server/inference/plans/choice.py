"""Which plan runs: one pure function from what was measured and what is tolerated to a decision, with its reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace_server.inference.plans.difference import why_intolerable
from headrace_server.inference.plans.measurement import Arrangement, Measurement, Trial
from headrace_server.inference.plans.plan import CPU, Form, Plan
from headrace_server.precision import Precision, Tolerances

GAIN = 0.9
"""A plan replaces a simpler one when it takes less than this share of its time: what is within the noise is no gain."""
USEFUL = 0.95
"""The largest useful batch is the smallest that reaches this share of the best throughput."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Batches of up to so many rows, and what runs them."""

    max_rows: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs, how it is arranged, and why."""

    buckets: tuple[Bucket, ...]
    """By size; the last takes everything larger too."""
    lone_threads: int
    """Threads of a run while nothing else waits or runs."""
    busy_threads: int
    busy_sessions: int
    """Runs at the same time, each with `busy_threads`, while calls wait."""
    max_batch_rows: int
    """Larger batches only make their callers wait."""
    refusals: dict[str, str]
    """By the name of a plan: why it may not run.  Plans that are merely slower are not here."""
    mask_input: str
    """The input whose zeros at the end of sequences are cut away; empty where everything is computed."""
    why: str
    """Why this and nothing faster, in a sentence."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan that runs, once, in the order of the buckets."""
        return tuple(dict.fromkeys(bucket.plan for bucket in self.buckets))

    def plan_for(self, rows: int) -> Plan:
        """What runs a batch of so many rows."""
        return next((bucket.plan for bucket in self.buckets if rows <= bucket.max_rows), self.buckets[-1].plan)


def decide(measurement: Measurement, wanted: Precision, tolerances: Tolerances, most_rows: int) -> Decision:
    """Choose among the trials.  The first must be the registered program in 32 bits, which always may run.

    `most_rows` is the largest batch that the server makes.
    """
    base = measurement.trials[0]
    refusals = {
        trial.plan.name: why for trial in measurement.trials if (why := _refusal(trial, base, measurement, tolerances))
    }
    allowed = [trial for trial in measurement.trials if trial.plan.name not in refusals or trial is base]
    if wanted not in (Precision.AUTO, Precision.FP32):
        allowed = [trial for trial in allowed if trial.plan.precision is wanted] or [base]
    elif wanted is Precision.FP32:
        allowed = [base]
    refusals.pop(base.plan.name, None)
    sizes = sorted({speed.rows for speed in base.speeds}) or [1]
    narrow, wide = _thread_counts(base)
    chosen = _fewest([_fastest(allowed, rows, wide if rows == 1 else narrow) for rows in sizes], sizes, wide, narrow)
    main = chosen[-1]
    arrangement = _busiest(main)
    return Decision(
        buckets=_buckets(sizes, chosen),
        lone_threads=_lone_threads(chosen[0], narrow, wide),
        busy_threads=arrangement.threads if arrangement is not None else narrow,
        busy_sessions=arrangement.sessions if arrangement is not None else 1,
        max_batch_rows=min(_largest_useful(main, sizes, narrow), most_rows),
        refusals=refusals,
        mask_input=base.mask_input,
        why=_why(measurement, wanted, chosen, refusals, base),
    )


def is_needed(plan: Plan, trials: Sequence[Trial], tolerances: Tolerances) -> bool:
    """Whether a plan has to be tried after these.

    One that keeps its normalisations in 32 bits is only there to rescue the one that does not; and what overflowed as
    it is does so compiled too, which takes a minute to find out.
    """
    known = {trial.plan: trial for trial in trials}
    if plan.keeps_norms:
        shorter = known.get(plan.model_copy(update={"keeps_norms": False, "form": Form.PLAIN}))
        if shorter is not None and not shorter.problem:
            return bool(why_intolerable(shorter.worst_difference(), None, tolerances))
    if plan.form is Form.COMPILED:
        as_it_is = known.get(plan.model_copy(update={"form": Form.PLAIN}))
        return as_it_is is None or not as_it_is.differences or not as_it_is.worst_difference().num_nonfinite
    return True


def _refusal(trial: Trial, base: Trial, measurement: Measurement, tolerances: Tolerances) -> str:
    if trial.problem:
        return trial.problem
    if not trial.differences:
        return "it was not compared"
    loss = None
    if trial.metric is not None and base.metric is not None:
        loss = base.metric - trial.metric if measurement.is_higher_better else trial.metric - base.metric
    return why_intolerable(trial.worst_difference(), loss, tolerances)


def _fastest(trials: Sequence[Trial], rows: int, threads: int) -> Trial:
    """The fastest for a size of batch; an earlier, simpler one unless the gain is clear."""
    best = trials[0]
    for trial in trials[1:]:
        if trial.seconds(rows, threads) is None:
            continue
        if best.seconds(rows, threads) is None or _is_clearly_faster(trial, best, rows, threads):
            best = trial
    return best


def _fewest(chosen: list[Trial], sizes: list[int], wide: int, narrow: int) -> list[Trial]:
    """Let the plan of the largest batches run the smaller ones too where nothing else is clearly faster.

    Every further plan is another copy of the weights in memory.
    """
    main = chosen[-1]
    return [
        trial if _is_clearly_faster(trial, main, rows, wide if rows == 1 else narrow) else main
        for trial, rows in zip(chosen, sizes, strict=True)
    ]


def _is_clearly_faster(trial: Trial, other: Trial, rows: int, threads: int) -> bool:
    """Whether a size of batch costs clearly less: of the machine when it is busy, where that is known of both."""
    own, others = trial.busy_seconds(rows), other.busy_seconds(rows)
    if own is None or others is None:
        own, others = trial.seconds(rows, threads), other.seconds(rows, threads)
    return own is not None and others is not None and own < others * GAIN


def _buckets(sizes: list[int], chosen: list[Trial]) -> tuple[Bucket, ...]:
    buckets: list[Bucket] = []
    for rows, trial in zip(sizes, chosen, strict=True):
        if buckets and buckets[-1].plan == trial.plan:
            buckets.pop()
        buckets.append(Bucket(rows, trial.plan))
    return tuple(buckets)


def _thread_counts(trial: Trial) -> tuple[int, int]:
    counts = sorted({speed.threads for speed in trial.speeds}) or [1]
    return counts[0], counts[-1]


def _lone_threads(trial: Trial, narrow: int, wide: int) -> int:
    alone, together = trial.seconds(1, narrow), trial.seconds(1, wide)
    if alone is None or together is None or trial.plan.device != CPU:
        return narrow
    return wide if together < alone * GAIN else narrow


def _busiest(trial: Trial) -> Arrangement | None:
    return max(trial.arrangements, key=lambda one: one.rows_per_second, default=None)


def _largest_useful(trial: Trial, sizes: list[int], threads: int) -> int:
    rates = {rows: rows / seconds for rows in sizes if (seconds := trial.seconds(rows, threads)) is not None}
    best = max(rates.values(), default=0.0)
    return next((rows for rows, rate in sorted(rates.items()) if rate >= best * USEFUL), sizes[-1])


def _why(
    measurement: Measurement, wanted: Precision, chosen: list[Trial], refusals: dict[str, str], base: Trial
) -> str:
    if base.problem:
        return f"the 32-bit program cannot be measured: {base.problem}"
    plans = list(dict.fromkeys(trial.plan.name for trial in chosen))
    if plans != [base.plan.name]:
        return f"the fastest within the tolerances of {len(measurement.trials)} that were tried"
    if wanted is Precision.FP32:
        return "FP32 was asked for"
    others = [trial for trial in measurement.trials if trial is not base]
    if not others:
        return "there is no other way to run it here"
    if all(trial.plan.name in refusals for trial in others):
        reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        return f"none of the other {len(others)} is within the tolerances: {reasons}"
    if wanted is not Precision.AUTO and not any(
        trial.plan.precision is wanted and trial.plan.name not in refusals for trial in others
    ):
        reasons = "; ".join(
            f"{name}: {why}"
            for trial in others
            if trial.plan.precision is wanted
            for name, why in refusals.items()
            if name == trial.plan.name
        )
        return f"no {wanted} plan may run: {reasons or 'there is none for what this version is made of'}"
    return "nothing that may run is clearly faster"
