from datetime import timedelta

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, strategies as st

from headrace.error.v1.error_reason_pb2 import ErrorReason
from headrace_server import errors
from headrace_server.errors import HeadraceError, Violation
from headrace_server.rpc import status as table
from headrace_server.rpc.status import LARGEST_STATUS_BYTES, Statuses, failure_status, status_of
from headrace_server.telemetry.metrics import Metrics

SECOND = timedelta(seconds=1)
CASES = [
    (errors.InvalidSpec([Violation("spec.model", "is required")]), "INVALID_ARGUMENT", "BadRequest"),
    (errors.InvalidName("x", "models/{model}"), "INVALID_ARGUMENT", "BadRequest"),
    (errors.TooLarge("dataset", 10, "datasets.max_upload_bytes"), "INVALID_ARGUMENT", "BadRequest"),
    (errors.ModelNotFound("models/m@a"), "NOT_FOUND", "ResourceInfo"),
    (errors.RequestIdReused("r", "trainingJobs/j"), "ALREADY_EXISTS", None),
    (errors.IllegalTransition("trainingJobs/j", "FAILED", "cancel"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (errors.InUse("datasets/d", "trainingJobs/j"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (errors.CursorExpired(1, 9), "OUT_OF_RANGE", None),
    (errors.NoPermit("m", 1, 1, SECOND), "RESOURCE_EXHAUSTED", "RetryInfo"),
    (errors.TooManyCalls(9), "RESOURCE_EXHAUSTED", "RetryInfo"),
    (errors.BuffersFull(9), "RESOURCE_EXHAUSTED", "RetryInfo"),
    (errors.TooLarge("metadata", 10), "INVALID_ARGUMENT", "BadRequest"),
    (errors.StoreAway(), "UNAVAILABLE", "RetryInfo"),
    (errors.Draining(4), "UNAVAILABLE", "RetryInfo"),
    (errors.ExpiredInQueue(3), "DEADLINE_EXCEEDED", None),
    (errors.WorkerFenced(1, 2), "ABORTED", None),
    (errors.ModelFailed("m", "p"), "INTERNAL", None),
]


def unpacked(status: status_pb2.Status) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for detail in status.details:
        kind = getattr(error_details_pb2, detail.type_url.rpartition(".")[2])
        message = kind()
        assert detail.Unpack(message)
        found[kind.__name__] = message
    return found


@pytest.mark.parametrize(("error", "code", "detail"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_each_kind_of_error_has_its_code_and_its_details(error: HeadraceError, code: str, detail: str | None) -> None:
    status = status_of(error)

    assert status.code == getattr(grpc.StatusCode, code).value[0]
    assert status.message == str(error)
    details = unpacked(status)
    info = details.pop("ErrorInfo")
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "headrace.dev", dict(error.metadata))
    assert list(details) == ([detail] if detail else [])


def test_the_contract_lists_every_reason_and_no_other() -> None:
    contract = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118

    assert table.reasons() == contract


def test_every_error_that_can_be_raised_has_a_reason_of_its_own() -> None:
    def leaves(kind: type[HeadraceError]) -> list[type[HeadraceError]]:
        children = kind.__subclasses__()
        return [leaf for child in children for leaf in leaves(child)] if children else [kind]

    raised = {kind for kind in leaves(HeadraceError) if kind.__module__.startswith(errors.__name__)} - {
        errors.CannotStart
    }

    reasons = [kind.reason for kind in raised]
    assert len(set(reasons)) == len(reasons)
    assert "INTERNAL" not in reasons


@given(
    st.lists(st.builds(Violation, st.text(max_size=400), st.text(max_size=2000)), min_size=1, max_size=200),
    st.dictionaries(st.sampled_from(["name", "model", "problem"]), st.text(max_size=5000)),
)
def test_details_always_fit_into_trailers(violations: list[Violation], metadata: dict[str, str]) -> None:
    error = errors.Invalid("é" * 3000, violations, **metadata)

    status = status_of(error)

    assert status.ByteSize() <= LARGEST_STATUS_BYTES
    details = unpacked(status)
    request, info = details["BadRequest"], details["ErrorInfo"]
    assert isinstance(request, error_details_pb2.BadRequest)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    left_out = int(info.metadata.get("violations_left_out", "0"))
    assert len(request.field_violations) + left_out == len(violations)
    assert len(request.field_violations) >= 1


def test_what_nobody_expected_is_counted_and_says_nothing_of_itself() -> None:
    metrics = Metrics()

    status = Statuses(metrics).of(KeyError("/etc/secret"))

    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    assert metrics.registry.get_sample_value("headrace_internal_errors_total") == 1


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("TRAINER_FAILED", "UNKNOWN"),
        ("STORE_LOST", "UNAVAILABLE"),
        ("WORKER_LOST", "ABORTED"),
        ("INVALID_DATASET", "INVALID_ARGUMENT"),
    ],
)
def test_the_failure_of_a_job_keeps_all_its_evidence(reason: str, code: str) -> None:
    evidence = {"last_lines": "x" * 100_000, "signal": "SIGKILL"}

    status = failure_status(reason, "it died", evidence)

    assert status.code == getattr(grpc.StatusCode, code).value[0]
    info = unpacked(status)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == (reason, evidence)
