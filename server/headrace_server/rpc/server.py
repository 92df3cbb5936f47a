"""The two gRPC servers of the house: the complete one for callers, and one on a private socket for the agents of jobs.

Knows how they are set up, which services they carry and how they are bound; knows nothing of what the services do.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc

from headrace.datasets.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from headrace.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from headrace.models.v1 import model_service_pb2, model_service_pb2_grpc
from headrace.training.v1 import training_service_pb2, training_service_pb2_grpc
from headrace_server.errors import CannotStart
from headrace_server.rpc.bounds import MAX_PARSED_METADATA_BYTES, Bounds
from headrace_server.rpc.health import Health
from headrace_server.rpc.interceptor import Interceptor
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc
from headrace_server.rpc.reflection import add_reflection
from headrace_server.rpc.services.open_inference import ANSWERED_TO_THE_END, methods_not_offered
from headrace_server.settings import ServerSettings
from headrace_server.worker.v1 import worker_service_pb2_grpc

TRAINING = training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name
INFERENCE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
MODELS = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
DATASETS = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name
OPEN_INFERENCE = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
PUBLIC_SERVICES = (TRAINING, INFERENCE, MODELS, DATASETS, OPEN_INFERENCE)
HEALTH = "grpc.health.v1.Health"

Options = Sequence[tuple[str, int]]

_COMMON: Options = (
    # Off: a second server on the same port must fail loudly rather than share its callers.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Readers of quiet streams ping to keep proxies open; without this the server would hang up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)

# The door lets through as much as callers may send, and adds who they are.
BEHIND_DOOR: Options = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.absolute_max_metadata_size", 64 << 10),
)

# What is over the bounds of callers gets as far as the interceptor, which says why it is refused.
AT_PUBLIC_PORT: Options = (
    ("grpc.max_receive_message_length", -1),
    # Compressed messages come as they are: gRPC would inflate them without a bound.
    ("grpc.per_message_decompression", 0),
    ("grpc.max_metadata_size", MAX_PARSED_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_PARSED_METADATA_BYTES),
)


def options(max_message_bytes: int) -> Options:
    """What every server of the house is set up with."""
    return (
        *_COMMON,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # What a stream may bring before somebody reads it.  Fixed: gRPC's own estimate grows without a bound on a fast
        # connection, so a caller who writes and never reads would cost that much.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.http2.write_buffer_size", 1 << 20),
    )


def public_server(
    settings: ServerSettings,
    interceptor: Interceptor,
    health: Health,
    *,
    is_behind_door: bool = False,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    training: training_service_pb2_grpc.TrainingServiceServicer,
    inference: inference_service_pb2_grpc.InferenceServiceServicer,
    models: model_service_pb2_grpc.ModelServiceServicer,
    datasets: dataset_service_pb2_grpc.DatasetServiceServicer,
    open_inference: grpc_predict_v2_pb2_grpc.GRPCInferenceServiceServicer,
) -> grpc.aio.Server:
    """The complete server, with all that callers can call; not bound and not started.

    Behind a native door it leaves to it what callers may cost.
    """
    # Of two options with one name gRPC takes the first.
    chosen = dict(options(settings.max_message_bytes)) | dict(BEHIND_DOOR if is_behind_door else AT_PUBLIC_PORT)
    server = grpc.aio.server(
        options=tuple(chosen.items()),
        interceptors=interceptors,
    )
    if is_behind_door:
        interceptor.trust_door()
    else:
        interceptor.keep_bounds(Bounds(settings))
    # Handlers are asked in this order, so the busiest come first.
    interceptor.add(inference_service_pb2_grpc.add_InferenceServiceServicer_to_server, inference, server)
    interceptor.add(
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
        open_inference,
        server,
        answered_to_the_end=ANSWERED_TO_THE_END,
    )
    interceptor.add(training_service_pb2_grpc.add_TrainingServiceServicer_to_server, training, server)
    interceptor.add(model_service_pb2_grpc.add_ModelServiceServicer_to_server, models, server)
    interceptor.add(dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server, datasets, server)
    interceptor.add_methods(OPEN_INFERENCE, methods_not_offered(), server)
    # These two answer to the very end: they are how others learn that it is the end.
    interceptor.add(health_pb2_grpc.add_HealthServicer_to_server, health, server, drains=False)
    add_reflection((*PUBLIC_SERVICES, HEALTH), interceptor, server)
    return server


def private_server(interceptor: Interceptor, worker: worker_service_pb2_grpc.WorkerServiceServicer) -> grpc.aio.Server:
    """The server that agents attach to; not bound and not started."""
    server = grpc.aio.server(options=options(64 << 20))
    interceptor.add(worker_service_pb2_grpc.add_WorkerServiceServicer_to_server, worker, server, drains=False)
    return server


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """Bind a TCP port and return it.  Raises CannotStart when it is taken or not to be had."""
    address = address_of(host, port)
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise port_taken(host, port) from error


def address_of(host: str, port: int) -> str:
    """Where to listen, as gRPC writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_taken(host: str, port: int) -> CannotStart:
    """Say that a port is not to be had."""
    return CannotStart(
        f"port {port} of {host} cannot be listened on; is another server running there? "
        "Choose another with --port, or server.port = 0 for any that is free"
    )


def bind_socket(server: grpc.aio.Server, path: Path) -> str:
    """Bind a Unix socket, which replaces one that a dead server left, and return its gRPC address."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    address = f"unix:{path}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotStart(f"the socket {path} for workers cannot be made") from error
    path.chmod(0o600)
    return address
