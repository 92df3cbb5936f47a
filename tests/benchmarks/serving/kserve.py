"""The model server of KServe's SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.serving.servers import Endpoint, Side, open_inference_endpoint, own_port, process
from tests.benchmarks.serving.workloads import Workload
from tests.doubles.environment import Environment

ENVIRONMENT = Environment("kserve", ("kserve==0.21.0", "onnxruntime==1.31.1"))
_NUM_THREADS = {"mlp": 0, "minilm": 2, "cnn": 2}
"""What this comparison uses."""


@contextmanager
def serve(workload: Workload, folder: Path) -> Iterator[Endpoint]:
    """One process, as KServe starts it."""
    http, port = own_port(), own_port()
    program = Path(__file__).parent / "programs" / "kserve_server.py"
    arguments = (workload.name, workload.onnx, workload.output, _NUM_THREADS[workload.name])
    options = (f"--http_port={http}", f"--grpc_port={port}", "--enable_latency_logging=false")
    with process((ENVIRONMENT.python(), program, *arguments, *options), folder) as (server, log):
        yield open_inference_endpoint(server, port, workload, log)


SIDE = Side("KServe", serve, ENVIRONMENT.python)
