"""What the native data plane itself costs a call: reading the request and writing the answer, without network or model.

Beside it, the same work in the complete server: protobuf's own reader, the checks, and its writer.  Sides alternate;
each figure is the median over the rounds, with its extremes.

    python tests/benchmarks/bench_plane.py [--rounds N]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.type.v1 import tensor_pb2
from headrace_server._native import plane_testing as native
from headrace_server.inference.prediction import Prediction, Provenance, Timing
from headrace_server.models.version import ModelVersion
from headrace_server.precision import Precision
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as infer_pb
from headrace_server.rpc.wire.inference import prediction_to_proto, question_from_proto
from headrace_server.rpc.wire.open_inference import question_from_request, response_of
from headrace_server.tensors import Signature

ROUND_SECONDS = 0.2
VERSION = ModelVersion(
    model="mlp", version=3, signature=Signature(inputs=(), outputs=()), artifacts=(), created_at=datetime.now(UTC)
)
PREDICTION = Prediction(
    VERSION,
    {"y": np.ones((1, 10), np.float32)},
    Timing(0.000123, 0.00001, 0.0002, 0.00001, 1, 1),
    Provenance("sha256:" + "0" * 64, "onnxruntime", Precision.FP32, "cpu", ""),
)


def predict_request(num_bytes: int) -> bytes:
    x = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, num_bytes // 4], data=bytes(num_bytes))
    return predict_pb.PredictRequest(model="models/mlp", inputs={"x": x}).SerializeToString()


def infer_request(num_bytes: int) -> bytes:
    request = infer_pb.ModelInferRequest(model_name="mlp", raw_input_contents=[bytes(num_bytes)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, num_bytes // 4])
    return request.SerializeToString()


def complete_predict(content: bytes) -> None:
    question = question_from_proto(predict_pb.PredictRequest.FromString(content))
    prediction_to_proto(PREDICTION, as_values=question.as_values).SerializeToString()


def complete_infer(content: bytes) -> None:
    request = infer_pb.ModelInferRequest.FromString(content)
    question = question_from_request(request)
    response_of(PREDICTION, request.id, is_raw=question.is_raw).SerializeToString()


def time_complete(answer: Callable[[bytes], None], content: bytes) -> float:
    num_times, began_at = 0, time.perf_counter()
    while time.perf_counter() < began_at + ROUND_SECONDS:
        answer(content)
        num_times += 1
    return (time.perf_counter() - began_at) / num_times


def time_native(is_predict: bool, content: bytes) -> float:
    num_times = max(1, int(ROUND_SECONDS / native.time_answers(is_predict, content, 1000)))
    return native.time_answers(is_predict, content, num_times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    print(f"{'':28}{'native, µs':>24}{'complete, µs':>26}{'ratio':>8}")
    for num_bytes in (256, 16_384, 602_112):
        for name, content, complete in (
            ("Predict", predict_request(num_bytes), complete_predict),
            ("ModelInfer", infer_request(num_bytes), complete_infer),
        ):
            mine, theirs = [], []
            for _ in range(rounds):
                mine.append(1e6 * time_native(name == "Predict", content))
                theirs.append(1e6 * time_complete(complete, content))
            shown = [f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in (mine, theirs)]
            ratio = statistics.median(theirs) / statistics.median(mine)
            print(f"{name:12}{num_bytes:>10,} bytes{shown[0]:>24}{shown[1]:>26}{ratio:>8.0f}")


if __name__ == "__main__":
    main()
