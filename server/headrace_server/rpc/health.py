"""grpc.health.v1: "" for the whole server, one entry for each service, and one for each model.

`Watch` on a model's name tells when it can answer.  A server that is ending says NOT_SERVING before it refuses
anything, and never turns back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

WHOLE_SERVER = ""
LONGEST_LIST = 100
"""gRFC A90."""

_Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """What can answer now.  Everything begins as NOT_SERVING."""

    def __init__(self, services: Iterable[str]) -> None:
        self._serving = dict.fromkeys((WHOLE_SERVER, *services), False)
        self._listeners: list[Callable[[bool], None]] = []
        self._is_latched = False
        self._is_closed = False
        self._bell = asyncio.Event()

    def open(self) -> None:
        """Say that the whole server and every service answer."""
        for name in [*self._serving]:
            if not name.startswith("models/"):
                self.tell(name, True)

    def tell(self, name: str, is_serving: bool) -> None:
        """Say whether `name` answers; ignored once the server is ending."""
        if not self._is_latched and self._serving.get(name) != is_serving:
            self._serving[name] = is_serving
            self._ring()
            if name == WHOLE_SERVER:
                self._tell_listeners(is_serving)

    def is_serving(self, name: str = WHOLE_SERVER) -> bool:
        """Whether `name` answers; False for a name that nobody knows."""
        return self._serving.get(name, False)

    def watch_server(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` with whether the whole server answers, whenever that is said."""
        self._listeners.append(listener)

    def latch(self) -> None:
        """Say, for good, that nothing answers any more."""
        self._serving = dict.fromkeys(self._serving, False)
        self._is_latched = True
        self._ring()
        self._tell_listeners(False)

    def close(self) -> None:
        """End every watch."""
        self._is_closed = True
        self._ring()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Say whether one name answers; NOT_FOUND for a name that nobody knows."""
        serving = self._serving.get(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service or model has this name")
        return _answer(serving)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """Say of every name whether it answers."""
        if len(self._serving) > LONGEST_LIST:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {LONGEST_LIST} names; check them one by one"
            )
        return health_pb2.HealthListResponse(
            statuses={name: _answer(serving) for name, serving in self._serving.items()}
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say whether one name answers, now and at every change."""
        last: object = self
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            serving = self._serving.get(request.service)
            if serving is not last:
                last = serving
                yield _answer(serving)
            if self._is_closed:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            await bell.wait()

    def _tell_listeners(self, is_serving: bool) -> None:
        for listener in self._listeners:
            listener(is_serving)

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()


def _answer(serving: bool | None) -> health_pb2.HealthCheckResponse:
    if serving is None:
        return health_pb2.HealthCheckResponse(status=_Status.SERVICE_UNKNOWN)
    return health_pb2.HealthCheckResponse(status=_Status.SERVING if serving else _Status.NOT_SERVING)
