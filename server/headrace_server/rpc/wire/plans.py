"""Plans of versions, from what the engine reports to the contract's message."""

from google.protobuf.duration_pb2 import Duration

from headrace.models.v1 import plan_pb2 as pb
from headrace_server.inference.improving import PlanReport
from headrace_server.inference.plans.choice import Decision
from headrace_server.inference.plans.difference import Difference
from headrace_server.inference.plans.measurement import Trial
from headrace_server.rpc.wire.events import time_to_proto
from headrace_server.rpc.wire.serving import policy_to_proto, precision_to_proto


def plan_to_proto(report: PlanReport) -> pb.Plan:
    """Everything that is known."""
    policy = report.policy.model_copy(update={"precision": report.wanted})
    plan = pb.Plan(
        model_version=str(report.version.name),
        state=pb.Plan.State.Value(f"STATE_{report.state.name}"),
        problem=report.problem,
        policy=policy_to_proto(policy),
        running=report.running,
    )
    measurement, decision = report.measurement, report.decision
    if measurement is not None and decision is not None:
        plan.decision.CopyFrom(_decision_to_proto(decision))
        plan.trials.extend(_trial_to_proto(trial, decision.refusals) for trial in measurement.trials)
        plan.row_source = pb.Plan.RowSource.Value(f"ROW_SOURCE_{measurement.source.name}")
        plan.why_drawn = measurement.why_drawn
        plan.num_rows = measurement.num_rows
        plan.reference = measurement.reference
        plan.metric = measurement.metric_name
        plan.environment.update(measurement.environment)
        plan.measure_time.CopyFrom(time_to_proto(measurement.measured_at))
        plan.measure_duration.CopyFrom(_span(measurement.seconds))
    return plan


def _decision_to_proto(decision: Decision) -> pb.Decision:
    return pb.Decision(
        buckets=[pb.Bucket(max_rows=bucket.max_rows, trial=bucket.plan.name) for bucket in decision.buckets],
        lone_threads=decision.lone_threads,
        busy_threads=decision.busy_threads,
        busy_sessions=decision.busy_sessions,
        max_batch_rows=decision.max_batch_rows,
        why=decision.why,
    )


def _trial_to_proto(trial: Trial, refusals: dict[str, str]) -> pb.Trial:
    return pb.Trial(
        name=trial.plan.name,
        backend=trial.plan.runtime,
        precision=precision_to_proto(trial.plan.precision),
        keeps_norms=trial.plan.keeps_norms,
        device=trial.plan.device,
        refusal=refusals.get(trial.plan.name, ""),
        differences=map(_difference_to_proto, trial.differences),
        speeds=[
            pb.Speed(rows=speed.rows, threads=speed.threads, duration=_span(speed.seconds)) for speed in trial.speeds
        ],
        arrangements=[pb.Arrangement(**arrangement.model_dump()) for arrangement in trial.arrangements],
        metric=trial.metric,
        prepared_digest=trial.prepared.digest if trial.prepared is not None else "",
        prepare_duration=_span(trial.prepare_seconds),
        resident_bytes=trial.resident_bytes,
    )


def _difference_to_proto(difference: Difference) -> pb.Difference:
    return pb.Difference(**difference.model_dump())


def _span(seconds: float) -> Duration:
    whole, nanos = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)
