"""MLServer, in its one process."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.serving.servers import Endpoint, Side, open_inference_endpoint, own_port, process
from tests.benchmarks.serving.workloads import Workload
from tests.doubles.environment import Environment

ENVIRONMENT = Environment("mlserver", ("mlserver==1.7.1", "onnxruntime==1.31.1"))
_NUM_THREADS = {"mlp": 0, "minilm": 2, "cnn": 2}
"""What this comparison uses."""


@contextmanager
def serve(workload: Workload, folder: Path) -> Iterator[Endpoint]:
    """`mlserver start`."""
    http, port, metrics = (own_port() for _ in range(3))
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": port,
        "metrics_port": metrics,
        "parallel_workers": 0,
        "debug": False,
    }
    extra = {"path": str(workload.onnx), "output": workload.output, "num_threads": _NUM_THREADS[workload.name]}
    model = {"name": workload.name, "implementation": "mlserver_runtime.OnnxModel", "parameters": {"extra": extra}}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    shutil.copy(Path(__file__).parent / "programs" / "mlserver_runtime.py", folder)
    program = ENVIRONMENT.python().with_name("mlserver")
    with process((program, "start", "."), folder) as (server, log):
        yield open_inference_endpoint(server, port, workload, log)


SIDE = Side("MLServer", serve, ENVIRONMENT.python)
