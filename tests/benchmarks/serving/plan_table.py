"""What a server says of the plans of a model, as a table: one row for each plan and size of batch."""

from collections.abc import Iterator

from headrace.models.v1.plan_pb2 import Plan, Trial
from tests.benchmarks.serving import tables

HEADER = ("model", "plan", "rows", "rows/s, 1 thread", "rows/s, all threads", "rows/s, most runs at once",
          "relative error", "least cosine", "agreement", "chosen, or why not")  # fmt: skip


def table(plans: list[Plan]) -> str:
    """All of them in one table."""
    return tables.rows(HEADER, [line for plan in plans for line in _lines(plan)])


def summary(plan: Plan) -> str:
    """What runs, in a sentence."""
    decision = plan.decision
    took = plan.measure_duration.ToTimedelta().total_seconds()
    return (
        f"{plan.model_version} runs {', '.join(plan.running)}: {decision.why}; alone {decision.lone_threads} threads, "
        f"busy {decision.busy_sessions} runs of {decision.busy_threads}, batches of up to {decision.max_batch_rows}; "
        f"compared with {plan.reference} on {plan.num_rows} rows; measured in {took:.0f} s"
    )


def _lines(plan: Plan) -> Iterator[tuple[object, ...]]:
    model = plan.model_version.split("/")[1]
    for trial in plan.trials:
        sizes = sorted({speed.rows for speed in trial.speeds})
        figures = _worst(trial)
        if not sizes:
            yield (model, trial.name, "", "", "", "", *figures, trial.refusal)
        for rows in sizes:
            rates = [_rate(trial, rows, threads) for threads in (1, max(speed.threads for speed in trial.speeds))]
            together = max((one.rows_per_second for one in trial.arrangements if one.rows == rows), default=0.0)
            most = f"{together:,.0f}" if together else ""
            yield (model, trial.name, rows, *rates, most, *figures, trial.refusal or _chosen(plan, trial, rows))


def _rate(trial: Trial, rows: int, threads: int) -> str:
    found = [
        one.duration.ToTimedelta().total_seconds() for one in trial.speeds if (one.rows, one.threads) == (rows, threads)
    ]
    return f"{rows / found[0]:,.0f}" if found and found[0] else ""


def _worst(trial: Trial) -> tuple[str, str, str]:
    if not trial.differences:
        return "", "", ""
    shares = [one.agreement for one in trial.differences if one.HasField("agreement")]
    return (
        f"{max(one.max_relative for one in trial.differences):.2g}",
        f"{min(one.min_cosine for one in trial.differences):.5f}",
        f"{min(shares):.1%}" if shares else "",
    )


def _chosen(plan: Plan, trial: Trial, rows: int) -> str:
    runs = next((one.trial for one in plan.decision.buckets if rows <= one.max_rows), plan.decision.buckets[-1].trial)
    return "chosen" if runs == trial.name else f"not clearly faster than {runs}"
