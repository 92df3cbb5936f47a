"""How a server double refuses a call: with the details that the contract promises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

D = TypeVar("D", bound=Message)


@dataclass(frozen=True)
class Refusal:
    """A status with its details; without a reason it is bare, as from a proxy or a broken connection."""

    code: grpc.StatusCode
    message: str = "refused"
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Mapping[str, str] = field(default_factory=dict)
    retry_after: timedelta | None = None
    request_id: str = ""

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            info = error_details_pb2.ErrorInfo(reason=self.reason, domain="headrace.dev", metadata=self.metadata)
            status.details.add().Pack(info)
        if self.violations:
            request = error_details_pb2.BadRequest()
            for path, description in self.violations.items():
                request.field_violations.add(field=path, description=description)
            status.details.add().Pack(request)
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(self.retry_after)
            status.details.add().Pack(retry)
        return status

    async def send(self, context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
        """End the call."""
        extra = (("x-request-id", self.request_id),) if self.request_id else ()
        status = self.status()
        if not status.details:
            await context.abort(self.code, self.message, extra)
        ending = rpc_status.to_status(status)
        await context.abort(ending.code, ending.details, (*extra, *ending.trailing_metadata))


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The reason of a call that was refused, with its metadata; empty where it has none."""
    return _detail_of(error, error_details_pb2.ErrorInfo())


def quota_of(error: grpc.aio.AioRpcError) -> error_details_pb2.QuotaFailure:
    """What there was not enough of; empty where a refusal does not say."""
    return _detail_of(error, error_details_pb2.QuotaFailure())


def _detail_of(error: grpc.aio.AioRpcError, detail: D) -> D:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    any(packed.Unpack(detail) for packed in status.details)
    return detail
