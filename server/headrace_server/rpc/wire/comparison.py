"""Comparisons of jobs, from the house's values to the contract's messages."""

from headrace.training.v1 import training_service_pb2 as pb
from headrace_server.rpc.wire.events import duration_to_proto, evaluation_to_proto, state_to_proto, step_to_proto
from headrace_server.training.comparison import Compared, Comparison, Difference


def comparison_to_proto(comparison: Comparison) -> pb.CompareTrainingJobsResponse:
    """Jobs side by side."""
    return pb.CompareTrainingJobsResponse(
        jobs=map(_compared_to_proto, comparison.jobs),
        spec_differences=map(_difference_to_proto, comparison.spec_differences),
        lineage_differences=map(_difference_to_proto, comparison.lineage_differences),
    )


def _compared_to_proto(compared: Compared) -> pb.ComparedJob:
    job, tally = compared.job, compared.tally
    latest, best = tally.latest_evaluation, tally.best_evaluation
    elapsed = compared.elapsed_seconds
    return pb.ComparedJob(
        name=str(job.name),
        state=state_to_proto(job.state),
        model_version=job.model_version,
        latest_step=None if job.latest_step is None else step_to_proto(job.latest_step),
        latest_evaluation=None if latest is None else evaluation_to_proto(latest),
        best_evaluation=None if best is None else evaluation_to_proto(best),
        queued=duration_to_proto(compared.queued_seconds),
        elapsed=None if elapsed is None else duration_to_proto(elapsed),
        restarts=job.restarts,
        num_workers=job.attempt,
        num_checkpoints=tally.num_checkpoints,
        checkpoint_bytes=tally.checkpoint_bytes,
        num_warnings=tally.num_warnings,
    )


def _difference_to_proto(difference: Difference) -> pb.Difference:
    return pb.Difference(path=difference.path, values=difference.values)
