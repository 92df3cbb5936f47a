"""What every call passes through, whatever its shape: an id, metrics, and the table of errors.

Handlers are wrapped once, when they are registered, so that a call costs no extra task and no lookup.  A handler runs
at most once.  `CancelledError` passes: the caller has gone, or the server ends the call.
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from headrace_server.errors import Draining, HeadraceError
from headrace_server.rpc.bounds import Bounds, unreadable
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.inflation import inflated
from headrace_server.rpc.status import Statuses, trailers
from headrace_server.telemetry.metrics import Metrics

REQUEST_ID = "x-request-id"
PART = "x-headrace-part"
"""With this the native door marks what is a part of a stream that it holds itself, and counts."""
LONGEST_REQUEST_ID = 128

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]
Requests: TypeAlias = AsyncIterator[T]
"""The requests of a call that sends many."""
Methods = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]

log = structlog.get_logger()


class Register(Protocol):
    """The generated function that adds a servicer to a server."""

    def __call__(self, servicer: Any, server: Any) -> None:
        """Register every method of `servicer`."""


class Interceptor:
    """Wraps the handlers of services on their way into a server.

    While `closing` is set, new calls of services that were added with `drains` are refused.
    """

    def __init__(self, metrics: Metrics, closing: asyncio.Event) -> None:
        self._metrics = metrics
        self._statuses = Statuses(metrics)
        self._door = _Doorkeeper(closing)
        self._is_behind_door = False
        self._bounds: Bounds | None = None

    def keep_bounds(self, bounds: Bounds) -> None:
        """From now on handlers are added for callers on the public port itself, whom nobody else holds to bounds."""
        self._bounds = bounds

    def trust_door(self) -> None:
        """From now on handlers are added for callers who come through the native door, and only through it."""
        self._is_behind_door = True

    async def wait_until_quiet(self, quiet_seconds: float, num_elsewhere: Callable[[], int] = lambda: 0) -> None:
        """Once closing, wait until for so long nobody has had to be turned away: callers have noticed.

        `num_elsewhere` counts those whom somebody else turns away.
        """
        seen, seen_at = num_elsewhere(), time.monotonic()
        while True:  # there is no event for what does not happen
            now = time.monotonic()
            if (count := num_elsewhere()) != seen:
                seen, seen_at = count, now
            left = max(self._door.turned_away_at, seen_at) + quiet_seconds - now
            if left <= 0:
                return
            await asyncio.sleep(min(left, quiet_seconds / 4))

    def add(
        self,
        register: Register,
        servicer: object,
        server: grpc.aio.Server,
        *,
        drains: bool = True,
        answered_to_the_end: Collection[str] = (),
    ) -> None:
        """Register `servicer` with `server` through its generated function, every handler wrapped.

        Methods that are `answered_to_the_end` are not refused while the server is closing.
        """
        recorder = _Recorder()
        register(servicer, recorder)
        for service, methods in recorder.services.items():
            last = {name: handler for name, handler in methods.items() if name in answered_to_the_end}
            others = {name: handler for name, handler in methods.items() if name not in last}
            self.add_methods(service, others, server, drains=drains)
            if last:
                self.add_methods(service, last, server, drains=False)

    def add_methods(self, service: str, methods: Methods, server: grpc.aio.Server, *, drains: bool = True) -> None:
        """Register methods under the full name of a service, every handler wrapped."""
        # Only as generic handlers: for registered ones grpc.aio waits for each method apart, which costs every call.
        wrapped = {name: self._wrap(f"{service}/{name}", handler, drains) for name, handler in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def _wrap(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]", drains: bool) -> Any:
        behavior: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        door = self._door if drains else None
        call = _Call(method, self._metrics, self._statuses, door, self._bounds, self._is_behind_door)
        deserializer = _tolerant(handler.request_deserializer, self._bounds)
        if handler.response_streaming:
            pump = _pump_stream if handler.request_streaming else _pump

            async def answer(request: Any, context: Context) -> None:
                await call.run(context, lambda: pump(behavior, request, context))

            make: Any = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(answer, deserializer, _passing_bytes(handler.response_serializer))

        ask = _ask_stream if handler.request_streaming else _ask

        async def answer_once(request: Any, context: Context) -> Any:
            return await call.run(context, lambda: ask(behavior, request, context))

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(answer_once, deserializer, handler.response_serializer)


class _Call:
    """The rules of one method's calls, with its metrics already bound."""

    def __init__(
        self,
        method: str,
        metrics: Metrics,
        statuses: Statuses,
        door: "_Doorkeeper | None",
        bounds: Bounds | None,
        is_behind_door: bool,
    ) -> None:
        self._method = method
        self._statuses = statuses
        self._door = door
        self._bounds = bounds
        self._is_behind_door = is_behind_door
        self._in_flight = metrics.calls_in_flight
        self._seconds = metrics.call_seconds.labels(method)
        self._calls = metrics.calls
        self._ended = {grpc.StatusCode.OK: metrics.calls.labels(method, "OK")}  # others when they first happen

    async def run(self, context: Context, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do the work of one call and end it with the status that it deserves."""
        request_id = _request_id(context)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        code = grpc.StatusCode.OK
        started_at = time.perf_counter()
        is_part = self._is_behind_door and _is_part(context)
        if not is_part:
            self._in_flight.inc()
        try:
            return await self._let_in(context, work, is_part)
        except asyncio.CancelledError:
            code = _why_cancelled(context)
            raise
        except grpc.aio.AbortError:
            code = _as_code(context.code())
            raise
        except grpc.aio.InternalError:
            # The caller went while something was being sent to him; there is nobody left to tell.
            code = grpc.StatusCode.CANCELLED
            return None
        except Exception as error:  # noqa: BLE001 - this is where everything that a call can raise is told to its caller
            status = self._statuses.of(error)
            if isinstance(error, HeadraceError):
                log.debug("rpc.refused", method=self._method, reason=error.reason, problem=str(error))
            code, message, details = trailers(status)
            await context.abort(code, message, ((REQUEST_ID, request_id), *details))
        finally:
            if not is_part:
                self._in_flight.dec()
                self._count(code)
                self._seconds.observe(time.perf_counter() - started_at)

    async def _let_in(self, context: Context, work: Callable[[], Awaitable[Any]], is_part: bool) -> Any:
        if self._bounds is not None:
            self._bounds.enter(context.invocation_metadata() or ())
        try:
            if self._door is not None and not is_part:  # what a stream has asked already is still answered
                self._door.check()
            return await work()
        finally:
            if self._bounds is not None:
                self._bounds.leave()

    def _count(self, code: grpc.StatusCode) -> None:
        counter = self._ended.get(code)
        if counter is None:
            counter = self._ended[code] = self._calls.labels(self._method, code.name)
        counter.inc()


class _Doorkeeper:
    """Turns new calls away once the server is closing."""

    def __init__(self, closing: asyncio.Event) -> None:
        self._closing = closing
        self.turned_away_at = 0.0

    def check(self) -> None:
        """Raise Draining when the server is closing."""
        if self._closing.is_set():
            self.turned_away_at = time.monotonic()
            raise Draining


class _Refused:
    """Stands for a request that cannot be read."""

    def __init__(self, error: HeadraceError) -> None:
        self.error = error


class _Recorder:
    """Takes the place of a server while a generated function registers a servicer."""

    def __init__(self) -> None:
        self.services: dict[str, Methods] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignored: the same handlers come by name."""

    def add_registered_method_handlers(self, service: str, methods: Methods) -> None:
        """Remember the methods of one service."""
        self.services[service] = methods


async def _ask(behavior: Any, request: Any, context: Context) -> Any:
    return await behavior(_whole(request), context)


async def _ask_stream(behavior: Any, requests: AsyncIterator[Any], context: Context) -> Any:
    async with closed_after(_each_whole(requests)) as whole:
        return await behavior(whole, context)


async def _pump(behavior: Any, request: Any, context: Context) -> None:
    # Answers are written, not yielded: so the handler is closed when the call ends, not when it is collected.
    async with closed_after(behavior(_whole(request), context)) as answers:
        async for answer in answers:
            await context.write(answer)


async def _pump_stream(behavior: Any, requests: AsyncIterator[Any], context: Context) -> None:
    async with closed_after(_each_whole(requests)) as whole:
        if not inspect.isasyncgenfunction(behavior):  # a handler that writes its answers itself
            await behavior(whole, context)
            return
        async with closed_after(behavior(whole, context)) as answers:
            async for answer in answers:
                await context.write(answer)


async def _each_whole(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _whole(request)


def _whole(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request


def _tolerant(deserialize: Callable[[bytes], Any] | None, bounds: Bounds | None) -> Callable[[bytes], Any]:
    assert deserialize is not None

    def read(content: bytes) -> Any:
        try:
            if bounds is not None:
                content = inflated(content, bounds.max_message_bytes)
                if len(content) > bounds.max_message_bytes:
                    return _Refused(bounds.too_large())
            return deserialize(content)
        except DecodeError:
            return _Refused(unreadable())

    return read


def _passing_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """Let a handler answer with bytes that it has already encoded, once for many readers."""
    assert serialize is not None
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if (
            key == REQUEST_ID
            and isinstance(value, str)
            and 0 < len(value) <= LONGEST_REQUEST_ID
            and value.isprintable()
        ):
            return value
    return f"{random.getrandbits(64):016x}"


def _is_part(context: Context) -> bool:
    return any(key == PART for key, _ in context.invocation_metadata() or ())


def _why_cancelled(context: Context) -> grpc.StatusCode:
    remaining: float | None = context.time_remaining()
    is_late = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def _as_code(code: Any) -> grpc.StatusCode:
    """grpc.aio gives back a code as the number it keeps."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
