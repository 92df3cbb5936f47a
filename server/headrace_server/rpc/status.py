"""The one table from the house's errors to gRPC: a code, and details in the forms of google.rpc.

Every status carries ErrorInfo; by its kind an error adds BadRequest, ResourceInfo, PreconditionFailure or RetryInfo.
What nobody expected becomes INTERNAL with an id: the details are in the log under that id, and nowhere else.

Details travel in the trailers of a call, for which clients reserve 8 KiB; so texts are cut and lists say what they
leave out.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from headrace_server import errors
from headrace_server.errors import HeadraceError, Violation
from headrace_server.telemetry.metrics import Metrics

DOMAIN = "headrace.dev"
MESSAGE_BYTES = 512
"""The message travels twice, once with up to three bytes for each of its own."""
VIOLATIONS_BYTES = 2600
TEXT_BYTES = 256
LARGEST_STATUS_BYTES = 5000

_CODES: dict[type[HeadraceError], grpc.StatusCode] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Fenced: grpc.StatusCode.ABORTED,
    errors.Broken: grpc.StatusCode.INTERNAL,
    errors.CannotStart: grpc.StatusCode.INTERNAL,
}
# How a job fails, besides the errors that calls can fail with.
_FAILURE_CODES = {
    "TRAINER_FAILED": grpc.StatusCode.UNKNOWN,
    "WORKER_LOST": grpc.StatusCode.ABORTED,
    "STORE_LOST": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}

log = structlog.get_logger()


class Statuses:
    """Turns whatever a call raised into the status that its caller sees."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def of(self, error: Exception) -> status_pb2.Status:
        """The status of a failed call.  Faults of our own are counted and logged here, once."""
        if isinstance(error, HeadraceError):
            return status_of(error)
        error_id = secrets.token_hex(4)
        self._metrics.internal_errors.inc()
        log.error("rpc.internal_error", error_id=error_id, exc_info=error)
        return _status(
            grpc.StatusCode.INTERNAL,
            f"a fault of the server; its log has the details under {error_id}",
            [_info("INTERNAL", {"error_id": error_id})],
        )


def status_of(error: HeadraceError) -> status_pb2.Status:
    """The status of an error that the house foresaw."""
    return _status(code_of(type(error)), str(error), list(_details(error)))


def code_of(kind: type[HeadraceError]) -> grpc.StatusCode:
    """The code that errors of this type travel under."""
    return next((_CODES[ancestor] for ancestor in kind.__mro__ if ancestor in _CODES), grpc.StatusCode.INTERNAL)


def failure_status(reason: str, message: str, metadata: Mapping[str, str]) -> status_pb2.Status:
    """Why a job failed.  It travels inside a message, so nothing is cut."""
    code = _FAILURE_CODES.get(reason) or _codes_by_reason().get(reason, grpc.StatusCode.UNKNOWN)
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    return status


def trailers(status: status_pb2.Status) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """A status in the form that ends a call: code, message, trailing metadata."""
    ending = rpc_status.to_status(status)
    return ending.code, ending.details, tuple(ending.trailing_metadata)


def reasons() -> set[str]:
    """Every reason that a call or a job can fail with."""
    return {*_codes_by_reason(), *_FAILURE_CODES}


def _codes_by_reason() -> dict[str, grpc.StatusCode]:
    return {
        kind.reason: code_of(kind)
        for kind in _descendants(HeadraceError)
        if not kind.__subclasses__() and kind is not errors.CannotStart
    }


def _descendants(kind: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


def _details(error: HeadraceError) -> Iterator[Message]:
    metadata = dict(error.metadata)
    if isinstance(error, errors.Invalid) and error.violations:
        request, num_left_out = _bad_request(error.violations)
        if num_left_out:
            metadata["violations_left_out"] = str(num_left_out)
        yield _info(error.reason, metadata)
        yield request
        return
    yield _info(error.reason, metadata)
    if isinstance(error, errors.NotFound):
        yield error_details_pb2.ResourceInfo(
            resource_type=error.kind, resource_name=_cut(error.name), description="does not exist"
        )
    elif isinstance(error, errors.WrongState):
        subject = metadata.get("name") or metadata.get("model") or metadata.get("what", "")
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, subject=_cut(subject), description=_cut(str(error), MESSAGE_BYTES))
        yield failure
    elif isinstance(error, errors.Overloaded | errors.Unavailable):
        if isinstance(error, errors.DeviceOutOfMemory) and error.missing_bytes is not None:
            failure = error_details_pb2.QuotaFailure()
            failure.violations.add(
                subject=f"device:{error.device}", description=f"{error.missing_bytes} bytes of memory are missing"
            )
            yield failure
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        yield retry


def _info(reason: str, metadata: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(
        reason=reason, domain=DOMAIN, metadata={key: _cut(value) for key, value in metadata.items()}
    )


def _bad_request(violations: Sequence[Violation]) -> tuple[error_details_pb2.BadRequest, int]:
    request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        request.field_violations.add(
            field=_cut(violation.field), description=_cut(violation.description, MESSAGE_BYTES)
        )
        if request.ByteSize() > VIOLATIONS_BYTES and index > 0:
            del request.field_violations[-1]
            return request, len(violations) - index
    return request, 0


def _status(code: grpc.StatusCode, message: str, details: Sequence[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=_cut(message, MESSAGE_BYTES))
    for detail in details:
        status.details.add().Pack(detail)
    assert status.ByteSize() <= LARGEST_STATUS_BYTES, "an error carries more metadata than fits in trailers"
    return status


def _cut(text: str, limit_bytes: int = TEXT_BYTES) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"
