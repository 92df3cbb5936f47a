"""TorchServe over its own gRPC interface, tensors as raw bytes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.benchmarks.serving.servers import Endpoint, Side, own_port, process
from tests.benchmarks.serving.workloads import Arrays, Workload, files_of
from tests.doubles.environment import Environment

ENVIRONMENT = Environment("torchserve", ("torchserve==0.12.0", "torch==2.13.0", "pyyaml>=6", "onnxruntime==1.31.1"))
PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
_WORKERS_AND_ROWS = {"mlp": (1, 64), "minilm": (2, 8), "cnn": (2, 8)}
"""What this comparison uses."""


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf that has a length."""
    length, size = len(content), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


def predictions_request(model: str, request: Arrays) -> bytes:
    """PredictionsRequest{model_name = 1, map<string, bytes> input = 3}."""
    entries = (_field(1, name.encode()) + _field(2, array.tobytes()) for name, array in request.items())
    return _field(1, model.encode()) + b"".join(_field(3, entry) for entry in entries)


def read_prediction(content: bytes) -> np.ndarray:
    """PredictionResponse{bytes prediction = 1}."""
    assert content[0] == 1 << 3 | 2
    first = next(index for index, byte in enumerate(content[1:], 1) if byte < 0x80) + 1
    return np.frombuffer(content[first:], "<f4")


@contextmanager
def serve(workload: Workload, folder: Path) -> Iterator[Endpoint]:
    """`torchserve`; a batch waits a millisecond for company, the least with which it makes batches at all."""
    python = ENVIRONMENT.python()
    num_workers, most_rows = _WORKERS_AND_ROWS[workload.name]
    _put_model(workload, folder / "store")
    ports = [own_port() for _ in range(5)]
    served = {
        "defaultVersion": True,
        "marName": workload.name,
        "minWorkers": num_workers,
        "maxWorkers": num_workers,
        "batchSize": most_rows,
        "maxBatchDelay": 1,
        "responseTimeout": 120,
    }
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{ports[0]}\nmanagement_address=http://127.0.0.1:{ports[1]}\n"
        f"metrics_address=http://127.0.0.1:{ports[2]}\ngrpc_inference_port={ports[3]}\ngrpc_management_port={ports[4]}\n"
        f"disable_token_authorization=true\ndisable_system_metrics=true\nload_models={workload.name}\n"
        f"job_queue_size=1000\nmodels={json.dumps({workload.name: {'1.0': served}})}\n"
    )
    (folder / "log4j2.xml").write_text(
        '<Configuration status="WARN"><Appenders><Console name="console"/></Appenders>'
        '<Loggers><Root level="WARN"><AppenderRef ref="console"/></Root></Loggers></Configuration>'
    )
    command = (
        *(python.with_name("torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"),
        *("--model-store", folder / "store", "--ts-config", folder / "config.properties"),
        *("--log-config", folder / "log4j2.xml"),
    )
    environment = {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "LOG_LOCATION": str(folder)}
    with process(command, folder, environment) as (server, log):
        contents = [predictions_request(workload.name, request) for request in workload.requests]
        target = f"127.0.0.1:{ports[3]}"
        yield Endpoint(server.pid, target, PREDICTIONS, files_of(contents, folder), read_prediction, log)


def _put_model(workload: Workload, store: Path) -> None:
    """A model in the form that `torch-model-archiver --archive-format no-archive` writes."""
    model = store / workload.name
    (model / "MAR-INF").mkdir(parents=True)
    about = {"modelName": workload.name, "handler": "torchserve_handler.py", "modelVersion": "1.0"}
    manifest = {"runtime": "python", "model": about, "archiverVersion": "0.12.0"}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (model / "model.onnx").symlink_to(workload.onnx)
    shutil.copy(Path(__file__).parent / "programs" / "torchserve_handler.py", model)
    columns = {name: (array.dtype.str, array.shape[1:]) for name, array in workload.requests[0].items()}
    (model / "columns.json").write_text(json.dumps(columns))


SIDE = Side("TorchServe", serve, ENVIRONMENT.python)
