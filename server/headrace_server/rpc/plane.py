"""The native data plane, seen from here: what it is told, and how it tells of errors.

It answers predictions, and questions after models, without Python; see `native/plane/`.  It gets every route in the
words of both protocols, encoded once for each version.
"""

from collections.abc import Sequence

import grpc

from headrace_server import _native
from headrace_server.inference.prediction import ModelStatus, Readiness
from headrace_server.inference.resident import Resident
from headrace_server.inference.routes import Route
from headrace_server.names import ModelName
from headrace_server.rpc.status import Statuses
from headrace_server.rpc.wire.inference import frame_to_proto
from headrace_server.rpc.wire.open_inference import frame_of
from headrace_server.rpc.wire.open_inference_models import metadata_of
from headrace_server.telemetry.calls import CallCounts, MethodCounts
from headrace_server.telemetry.metrics import LATENCY_SECONDS
from headrace_server.tensors import TensorSpec

_STREAMS = ("headrace.inference.v1.InferenceService/PredictStream", "inference.GRPCInferenceService/ModelStreamInfer")
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Plane:
    """Belongs to the event loop."""

    def __init__(self, statuses: Statuses, stream_window: int) -> None:
        self._statuses = statuses
        self._served: dict[Resident, _native.ServedVersion] = {}
        self.native = _native.Plane(
            latency_bounds=LATENCY_SECONDS, stream_window=stream_window, tell_error=self._tell_error
        )

    def turn(self, routes: Sequence[Route]) -> None:
        """Answer by these routes from now on; calls that have found an earlier one finish by it."""
        self._served = {
            route.resident: self._served.get(route.resident) or _served_by(route.resident) for route in routes
        }
        self.native.turn(
            [(*_parts_of(route.name), self._served[route.resident], _metadata_of(route)) for route in routes]
        )

    def set_serving(self, is_serving: bool) -> None:
        """Say of the server, and of every model, whether it is ready."""
        self.native.set_serving(is_serving)

    def drain(self) -> None:
        """Leave new calls to the complete server, and end streams when what is under way is answered."""
        self.native.drain()

    def num_turned_away(self) -> int:
        """How many streams have ended because the server is closing; calls are turned away by the complete server."""
        return sum(codes.get(_UNAVAILABLE, 0) for codes, *_ in map(self.native.read_counts().__getitem__, _STREAMS))

    def trace(self, ratio: float) -> None:
        """Record spans of this share of the calls whose callers do not say; `native.take_spans` has them."""
        self.native.trace(ratio)

    def counts(self) -> CallCounts:
        """What was answered here and what was left to the complete server, for the metrics; from any thread."""
        return CallCounts(
            in_flight=self.native.calls_in_flight,
            methods=[
                MethodCounts(
                    method, {_CODES[code]: count for code, count in codes.items()}, seconds, seconds_sum, passed
                )
                for method, (codes, seconds, seconds_sum, passed) in self.native.read_counts().items()
            ],
        )

    def _tell_error(self, error: Exception) -> tuple[int, str, bytes]:
        status = self._statuses.of(error)
        return status.code, status.message, status.SerializeToString()


def _served_by(resident: Resident) -> _native.ServedVersion:
    version = resident.version
    signature = version.signature
    return _native.ServedVersion(
        name=str(version.name),
        batcher=resident.batcher.native,
        inputs=[*map(_plain, signature.inputs)],
        outputs=[*map(_plain, signature.outputs)],
        takes_rows=signature.is_batchable,
        provenance=[
            (frame_to_proto(version, each).SerializeToString(), frame_of(version, each).SerializeToString())
            for each in resident.provenances
        ],
    )


def _plain(spec: TensorSpec) -> tuple[str, str, Sequence[int], bool, Sequence[str]]:
    texts = spec.class_names if spec.takes_text else ()
    return spec.name, spec.data_type.value, spec.shape, spec.finite_only, texts


def _parts_of(name: ModelName) -> tuple[str, str]:
    """A name in the two parts that the Open Inference Protocol gives it."""
    if name.version is not None:
        return name.model, str(name.version)
    return f"{name.model}@{name.alias}" if name.alias else name.model, ""


def _metadata_of(route: Route) -> bytes:
    version = route.resident.version
    status = ModelStatus(version, Readiness.READY, None, 0, route.resident.backend)
    metadata = metadata_of(status, [version])
    metadata.versions[:] = map(str, route.numbers)
    return metadata.SerializeToString()
