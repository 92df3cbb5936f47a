"""From the status that ends a call, or lies inside a message, to the types of `errors.py`."""

from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from headrace.errors import CATEGORIES, Denied, HeadraceError, ServerFault
from headrace.evidence import Evidence, Violation

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"


def from_call(error: grpc.aio.AioRpcError) -> HeadraceError:
    """What a failed call means."""
    status = _status_in(error)
    request_id = _metadata_of(error).get(_REQUEST_ID_KEY, "")
    text = request_id if isinstance(request_id, str) else ""
    if status is not None:
        return from_status(status, request_id=text)
    return _make(error.code(), _explain(error), "", Evidence(request_id=text))


def from_status(status: status_pb2.Status, request_id: str = "") -> HeadraceError:
    """What a status means that came inside a message: an answer of a stream, the failure of a job."""
    info, request, retry, asked = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.RequestInfo(),
    )
    kinds: Sequence[Message] = (info, request, retry, asked)
    for detail in status.details:
        for kind in kinds:
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    evidence = Evidence(
        metadata=dict(info.metadata),
        violations=tuple(Violation(one.field, one.description) for one in request.field_violations),
        retry_after=retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None,
        request_id=asked.request_id or info.metadata.get("error_id", "") or request_id,
    )
    return _make(_code(status.code), status.message, info.reason, evidence)


def _make(code: grpc.StatusCode, message: str, reason: str, evidence: Evidence) -> HeadraceError:
    kind = _BY_REASON.get(reason)
    if kind is None or kind.default_code is not code:
        kind = _BY_CODE.get(code, ServerFault)
    return kind(message, code=code, reason=reason, evidence=evidence)


def _explain(error: grpc.aio.AioRpcError) -> str:
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return f"{details}: this server does not have the method; is it a Headrace server of this release?"
    return details


def _status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    encoded = _metadata_of(error).get(_DETAILS_KEY)
    if not isinstance(encoded, bytes):
        return None
    try:
        status = status_pb2.Status.FromString(encoded)
    except DecodeError:
        return None
    return status if _code(status.code) is error.code() else None


def _metadata_of(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    pairs = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
    return dict(pairs)


def _code(number: int) -> grpc.StatusCode:
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_BY_CODE = {kind.default_code: kind for kind in CATEGORIES} | {grpc.StatusCode.UNAUTHENTICATED: Denied}
_BY_REASON = {kind.reason: kind for category in CATEGORIES for kind in category.__subclasses__()}
