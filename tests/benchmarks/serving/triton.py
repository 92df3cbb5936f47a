"""NVIDIA Triton's server as PyPI's nvidia-pytriton carries it, with its Python backend and dynamic batching."""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.serving.servers import Endpoint, Side, open_inference_endpoint, own_port, process
from tests.benchmarks.serving.workloads import Workload
from tests.doubles.environment import Environment

ENVIRONMENT = Environment("triton", ("nvidia-pytriton==0.7.0", "onnxruntime==1.31.1"))
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
_MOST_ROWS = {"mlp": 64, "minilm": 8, "cnn": 8}
"""What this comparison uses; two cores gain nothing from larger batches of the larger models."""


def _configuration(workload: Workload, num_instances: int) -> str:
    def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> str:
        dims = ", ".join(str(length) for length in shape)
        return f'{{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ {dims} ] }}'

    request, answer = workload.requests[0], workload.answers[0]
    inputs = ", ".join(tensor(name, array.dtype.name, array.shape[1:]) for name, array in request.items())
    output = tensor(workload.output, answer.dtype.name, answer.shape[1:])
    return (
        f'name: "{workload.name}"\nbackend: "python"\nmax_batch_size: {_MOST_ROWS[workload.name]}\n'
        f"input [ {inputs} ]\noutput [ {output} ]\n"
        f"instance_group [ {{ count: {num_instances} kind: KIND_CPU }} ]\ndynamic_batching {{ }}\n"
    )


@contextmanager
def serve(workload: Workload, folder: Path, num_instances: int) -> Iterator[Endpoint]:
    """`tritonserver` with so many processes that run the model."""
    python = ENVIRONMENT.python()
    carried = ENVIRONMENT.site_packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = folder / "backends" / "python"
    shutil.copytree(carried / "backends" / "python", backend)
    shutil.copy2(carried / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    model = folder / "models" / workload.name
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(_configuration(workload, num_instances))
    (model / "1" / "model.onnx").symlink_to(workload.onnx)
    shutil.copy(Path(__file__).parent / "programs" / "triton_model.py", model / "1" / "model.py")
    port = own_port()
    command: tuple[object, ...] = (
        carried / "bin" / "tritonserver",
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        f"--grpc-port={port}",
        "--grpc-address=127.0.0.1",
        "--allow-http=false",
        "--allow-metrics=false",
        # Of each server of its kind on a machine: the shared memory between its processes is named after it.
        f"--backend-config=python,shm-region-prefix-name=headrace{port}",
    )
    libraries = f"{ENVIRONMENT.site_packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "LD_LIBRARY_PATH": libraries}
    with process(command, folder, environment) as (server, log):
        yield open_inference_endpoint(server, port, workload, log)


def side(num_instances: int) -> Side:
    """Triton with one or more instances of the model."""
    plural = "s" if num_instances > 1 else ""
    return Side(
        f"Triton, {num_instances} instance{plural}",
        lambda workload, folder: serve(workload, folder, num_instances),
        ENVIRONMENT.python,
    )
