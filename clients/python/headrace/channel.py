"""How this client dials: the options of its gRPC channel.

Keys are those of gRPC's `channel_arg_names.h`; unknown ones would be ignored in silence.
"""

import ipaddress
import json
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

MIB = 1 << 20
_READS = {
    "headrace.training.v1.TrainingService": ("GetTrainingJob", "ListTrainingJobs", "ListTrainers"),
    "headrace.inference.v1.InferenceService": ("GetModelStatus",),
    "headrace.models.v1.ModelService": ("GetModel", "ListModels", "GetModelVersion", "ListModelVersions", "GetPlan"),
    "headrace.datasets.v1.DatasetService": ("GetDataset", "ListDatasets", "ListDatasetVersions"),
    "grpc.health.v1.Health": ("Check",),
}


def tls_credentials(
    ca: str | PathLike[str] | None = None,
    certificate: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """Credentials for a server that speaks TLS, from files in PEM.

    `ca` holds the authorities that may have signed the server's certificate; None: those that gRPC brings along.
    `certificate` and `key` are the caller's own, for servers that ask for them.  Raises OSError when a file cannot be
    read, and ValueError when only one of the two is given.
    """
    if (certificate is None) != (key is None):
        raise ValueError("a certificate needs its key, and a key its certificate")
    roots, chain, private = (None if path is None else Path(path).read_bytes() for path in (ca, certificate, key))
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=private, certificate_chain=chain)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, max_message_bytes: int) -> grpc.aio.Channel:
    """A channel to `target`; it connects when it is first used.  Must be called in the loop that will use it."""
    options = channel_options(target, max_message_bytes)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def channel_options(target: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    """The options of every channel of this client."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A dead peer under a quiet stream is noticed after 40 s; an idle connection is not pinged.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # The default waits up to two minutes before it dials a server that was away; a watcher should not.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config())),
        ("grpc.primary_user_agent", "headrace-python"),
    ]
    if _is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
    return options


def service_config() -> dict[str, Any]:
    """gRPC's own repetition, for reads only: at most 4 tries within about two seconds.

    Calls that change something, and Predict, are repeated by `wire.py`, which reads the server's RetryInfo.
    """
    names = [{"service": service, "method": method} for service, methods in _READS.items() for method in methods]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {"methodConfig": [{"name": names, "retryPolicy": policy}]}


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]") or target
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
