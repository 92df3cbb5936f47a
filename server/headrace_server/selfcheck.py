"""Looks at everything that a server needs, without starting one and without changing what it keeps.

Torch is looked at in a process of its own: the server's process does not load it.
"""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace_server import descriptors
from headrace_server.devices import Devices, find_devices
from headrace_server.errors import CannotStart
from headrace_server.settings import Settings

LITTLE_SPACE_BYTES = 1 << 30
TORCH_SECONDS = 120.0
FEW_DESCRIPTORS = 4096

_LOOK_AT_TORCH = """
import json, torch
print(json.dumps([torch.__version__, torch.cuda.is_available()]))
"""


class Verdict(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    """The server runs, but with less than there could be."""
    BROKEN = "broken"
    """The server could not run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str
    """What was found, and what would help."""

    def as_json(self) -> dict[str, str]:
        """As the command prints it."""
        return {"name": self.name, "verdict": self.verdict.value, "detail": self.detail}


def look(settings: Settings) -> list[Finding]:
    """Look at everything.  Blocks for seconds."""
    findings: list[Finding] = []
    devices: Devices | None = None
    try:
        devices = find_devices()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        findings.append(Finding("devices", Verdict.BROKEN, repr(error)))
    looks: dict[str, Callable[[], Finding]] = {
        "native module": lambda: _native(devices),
        "onnxruntime": lambda: _onnxruntime(devices),
        "torch": lambda: _torch(devices),
        "grpc": _grpc,
        "door": lambda: _door(settings),
        "connections": _connections,
        "data folder": lambda: _data_folder(settings.data),
        "database": lambda: _database(settings),
        "tls": lambda: _tls(settings),
        "sinks": lambda: _sinks(settings),
        "port": lambda: _port("port", settings.server.host, settings.server.port, "server.port"),
        "metrics port": lambda: _port(
            "metrics port", settings.telemetry.metrics_host, settings.telemetry.metrics_port, "telemetry.metrics_port"
        ),
    }
    return [*findings, *(_safely(name, look) for name, look in looks.items())]


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """0 when the server could run, 2 when it could not; with `strict`, 1 when there is a warning."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.BROKEN in verdicts:
        return 2
    return 1 if strict and Verdict.WARNING in verdicts else 0


def _safely(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Finding(name, Verdict.BROKEN, f"{type(error).__name__}: {error}")


def _native(devices: Devices | None) -> Finding:
    from headrace_server import _native

    built = "with CUDA" if _native.cuda_built else "without CUDA"
    detail = f"built {built}, {_native.instruction_sets[0]}"
    if devices is not None and devices.has_gpu:
        detail += f", {devices.num_gpus} GPU"
        if not _native.cuda_built:
            return Finding("native module", Verdict.WARNING, f"{detail}; build it again where nvcc is")
    elif devices is not None:
        detail += f", no GPU ({devices.no_gpu_reason})"
    return Finding("native module", Verdict.OK, detail)


def _sinks(settings: Settings) -> Finding:
    """The trackers of experiments; whether they answer shows when there is something to tell."""
    from headrace_server.training.sinks.catalogue import prepare_sinks

    sinks = prepare_sinks(settings.training.sinks)
    return Finding("sinks", Verdict.OK, ", ".join(one.name for one, _ in sinks) or "none")


def _onnxruntime(devices: Devices | None) -> Finding:
    import onnx
    import onnxruntime

    from headrace_server.kernels import onnx_programs

    # The list of providers names what was built in; only a session tells what works.
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wanted = ["CPUExecutionProvider"]
    if devices is not None and devices.has_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        wanted.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=wanted)
    working = ", ".join(provider.removesuffix("ExecutionProvider") for provider in session.get_providers())
    detail = f"{onnxruntime.__version__} runs on {working}"
    detail += ", on the CPU without Python" if onnx_programs.can_open() else ", through Python: it has no library"
    if devices is not None and devices.has_gpu and "CUDA" not in working:
        return Finding("onnxruntime", Verdict.WARNING, f"{detail}; install onnxruntime-gpu to use the GPU")
    return Finding("onnxruntime", Verdict.OK, detail)


def _torch(devices: Devices | None) -> Finding:
    command = [sys.executable, "-P", "-c", _LOOK_AT_TORCH]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False)  # noqa: S603
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("torch", Verdict.WARNING, f"cannot be loaded, so nothing can be trained: {last}")
    version, has_cuda = json.loads(result.stdout.strip().splitlines()[-1])
    detail = f"{version}, {'with' if has_cuda else 'without'} CUDA"
    if devices is not None and devices.has_gpu and not has_cuda:
        return Finding("torch", Verdict.WARNING, f"{detail}; install a build with CUDA to train on the GPU")
    return Finding("torch", Verdict.OK, detail)


def _grpc() -> Finding:
    import google.protobuf
    import grpc

    return Finding("grpc", Verdict.OK, f"grpcio {grpc.__version__}, protobuf {google.protobuf.__version__}")


def _door(settings: Settings) -> Finding:
    from headrace_server import _native
    from headrace_server.rpc.door import kind_of

    try:
        kind = kind_of(settings.server.door)
    except CannotStart as error:
        return Finding("door", Verdict.BROKEN, str(error))
    detail = {
        "native": "native: predictions are answered without Python's lock, the rest by grpc.aio behind it",
        "grpc_aio": "grpc.aio holds the port",
    }[kind]
    if not _native.door_built:
        return Finding("door", Verdict.WARNING, f"{detail}; for the native one, install libgrpc++-dev and build again")
    return Finding("door", Verdict.OK, detail)


def _connections() -> Finding:
    limit = descriptors.most()
    detail = f"{limit:,} files and connections may be open at a time"
    if limit < FEW_DESCRIPTORS:
        return Finding("connections", Verdict.WARNING, f"{detail}; raise the hard limit (ulimit -Hn, LimitNOFILE=)")
    return Finding("connections", Verdict.OK, detail)


def _tls(settings: Settings) -> Finding:
    from headrace_server.rpc.tls import tls_of

    try:
        tls = tls_of(settings.server)
    except CannotStart as error:
        return Finding("tls", Verdict.BROKEN, str(error))
    if tls is None:
        return Finding("tls", Verdict.OK, "off: the port speaks plain text")
    asked = (
        f"callers show a certificate of {tls.client_ca}" if tls.client_ca is not None else "callers need no certificate"
    )
    return Finding("tls", Verdict.OK, f"{tls.certificate}; {asked}")


def _data_folder(data: Path) -> Finding:
    folder = next(parent for parent in (data.absolute(), *data.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"headrace")
    except OSError as error:
        return Finding("data folder", Verdict.BROKEN, f"{folder} cannot be written: {error.strerror}")
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{data.absolute()}{'' if data.exists() else ' (will be made)'}, {free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes < LITTLE_SPACE_BYTES:
        return Finding("data folder", Verdict.WARNING, f"{detail}; make room")
    return Finding("data folder", Verdict.OK, detail)


def _database(settings: Settings) -> Finding:
    from headrace_server.database.revision import look_at_revision

    file = settings.data.absolute() / "headrace.db"
    if not settings.database.url and not file.exists():
        return Finding("database", Verdict.OK, f"{file} (will be made)")
    try:
        present, newest = asyncio.run(look_at_revision(settings.database.url or f"sqlite+aiosqlite:///{file}"))
    except CannotStart as error:
        return Finding("database", Verdict.BROKEN, str(error))
    if present == newest:
        return Finding("database", Verdict.OK, f"revision {present}")
    return Finding("database", Verdict.OK, f"revision {present or 'none'}; the next start brings it to {newest}")


def _port(name: str, host: str, port: int, setting: str) -> Finding:
    if port <= 0:
        return Finding(name, Verdict.OK, "off" if port < 0 else "any that is free")
    for family, address in _addresses(host, port):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                return Finding(name, Verdict.BROKEN, f"{host}:{port}: {error.strerror}; choose another with {setting}")
    return Finding(name, Verdict.OK, f"{host}:{port} is free")


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple[str, int]]]:
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield family, (str(address[0]), int(address[1]))
