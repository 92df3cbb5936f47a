"""Whether the server, one of its services or one of its models is ready to answer."""

from __future__ import annotations

from enum import Enum

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from headrace.wire import Wire


class Health(Enum):
    """Readiness; values as in grpc.health.v1."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2


class HealthCalls:
    """The part of a client that asks how the server is."""

    _wire: Wire

    async def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """The readiness of the whole server, of "headrace.inference.v1.InferenceService" or of "models/digits".

        Raises NotFound for a service or model that the server does not know, and Unavailable when nobody answers.
        """
        # On the wire, HealthCheckRequest is a string in field 1 and its response a number in field 1: exactly these two
        # well-known messages, which saves a dependency.
        check = self._wire.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        answer: Int32Value = await self._wire.call_once(check, StringValue(value=service), timeout)
        return Health(answer.value) if answer.value in {0, 1, 2} else Health.UNKNOWN
