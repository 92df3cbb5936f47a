"""Spans of calls, sent to an OpenTelemetry collector: those of the complete server, and those of the native door.

The door records by itself (W3C Trace Context, a ratio) and keeps what has ended in a bounded line, which a thread
empties into the same exporter.  Needs the extra `headrace-server[tracing]`; imported only where tracing is on.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from headrace_server import __version__

NativeSpan = Mapping[str, Any]
"""As `_native.Plane.take_spans` has it."""

EMPTYING_SECONDS = 1.0
# The codes that are the server's fault: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_FAULTS = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
_TIMES = ("queue_seconds", "assemble_seconds", "compute_seconds", "batch_rows", "batch_calls")


class Tracing:
    """An exporter and what feeds it, until it is closed."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """`ratio` is the share of calls that are recorded when their callers do not say."""
        self._resource = Resource.create({"service.name": "headrace", "service.version": __version__})
        self._exporting = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=self._resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._exporting)
        self._sources: list[Callable[[], Iterable[NativeSpan]]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._empty_until_over, name="headrace-spans", daemon=True)
        self._thread.start()

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Records the calls of a server of grpc.aio."""
        make: Callable[..., grpc.aio.ServerInterceptor] = aio_server_interceptor
        return make(tracer_provider=self._provider)

    def follow(self, source: Callable[[], Iterable[NativeSpan]]) -> None:
        """Send on what `source` returns, which is asked every second."""
        self._sources.append(source)

    def close(self) -> None:
        """Send what there is, for as long as the exporter tries; blocks."""
        self._is_over.set()
        self._thread.join()
        self._provider.shutdown()

    def _empty_until_over(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(EMPTYING_SECONDS)
            for source in self._sources:
                for span in source():
                    self._exporting.on_end(_readable(span, self._resource))


def _readable(span: NativeSpan, resource: Resource) -> ReadableSpan:
    service, _, method = span["method"].rpartition("/")
    trace_id = int.from_bytes(span["trace_id"])
    parent_id = int.from_bytes(span["parent_id"])
    flags = TraceFlags(TraceFlags.SAMPLED)
    state = TraceState.from_header([span["tracestate"]] if span["tracestate"] else [])
    attributes: dict[str, Any] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": span["code"],
    }
    if span["version"]:
        attributes["headrace.model_version"] = span["version"]
        attributes.update({f"headrace.{key}": span[key] for key in _TIMES})
    return ReadableSpan(
        name=f"/{span['method']}",
        context=SpanContext(trace_id, int.from_bytes(span["span_id"]), False, flags, state),
        parent=SpanContext(trace_id, parent_id, True, flags, state) if parent_id else None,
        resource=resource,
        attributes=attributes,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if span["code"] in _FAULTS else StatusCode.UNSET),
        start_time=span["started_at_nanos"],
        end_time=span["ended_at_nanos"],
    )
