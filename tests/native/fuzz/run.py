"""Fuzzes what parses bytes from the network: `make fuzz`, or `python tests/native/fuzz/run.py --seconds 600`.

Builds `fuzz_requests.cc` with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, begins with real messages,
and ends with an error when anything was found; the input is kept below build/fuzz/found.  A fixed one moves to
tests/native/fuzz/found, which tests/native/plane/test_found.py reads ever after.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import ExpiredInQueue, InvalidSpec, Violation
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as infer_pb
from headrace_server.rpc.status import status_of
from headrace_server.tensors import DataType

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "fuzz"
CODEC = [
    "plane/statuses.cc",
    "plane/wire/contents.cc",
    "plane/wire/open_inference.cc",
    "plane/wire/predict.cc",
    "plane/wire/reader.cc",
    "plane/wire/tensors.cc",
    "plane/wire/texts.cc",
]
PREDICT, INFER, STREAM, ABOUT, ID, STATUS = range(6)


def seeds() -> Iterator[tuple[int, bytes]]:
    """Real messages, each with the number of its reader."""
    for data_type in DataType:
        if data_type is not DataType.STRING:
            predict, readable, raw, typed = _requests(data_type)
            yield PREDICT, predict.SerializeToString()
            if data_type not in (DataType.FP8_E4M3, DataType.FP8_E5M2):
                yield PREDICT, readable.SerializeToString()
            stream = predict_pb.PredictStreamRequest(id="é7", request=predict)
            stream.timeout.FromMilliseconds(1500)
            yield STREAM, stream.SerializeToString()
            yield from ((reader, raw.SerializeToString()) for reader in (INFER, ID))
            yield INFER, typed.SerializeToString()
    texts = ["red", "", "gr\u00fcn"]
    contents = [text.encode() for text in texts]
    readable = predict_pb.PredictRequest(model="models/digits")
    readable.inputs["colour"].CopyFrom(
        tensor_pb2.Tensor(
            data_type=tensor_pb2.DATA_TYPE_STRING, shape=[3], strings=tensor_pb2.StringValues(values=texts)
        )
    )
    yield PREDICT, readable.SerializeToString()
    typed = infer_pb.ModelInferRequest(model_name="digits")
    typed.inputs.add(name="colour", datatype="BYTES", shape=[3])
    raw = infer_pb.ModelInferRequest()
    raw.CopyFrom(typed)
    typed.inputs[0].contents.bytes_contents.extend(contents)
    raw.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in contents))
    yield from ((INFER, request.SerializeToString()) for request in (typed, raw))
    yield ABOUT, infer_pb.ModelReadyRequest(name="digits@champion", version="3").SerializeToString()
    for error in (ExpiredInQueue(3.5), InvalidSpec([Violation("id", "is there twice")])):
        yield STATUS, status_of(error).SerializeToString()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=180)
    seconds: int = parser.parse_args().seconds
    compiler = shutil.which("clang++")
    if compiler is None:
        print("libFuzzer comes with clang (on Debian: apt-get install clang libclang-rt-14-dev)", file=sys.stderr)
        return 1
    corpus, found = BUILD / "corpus", BUILD / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for index, ((reader, content), cut) in enumerate(itertools.product(seeds(), (0, 1, 3, 16))):
        (corpus / f"seed-{index}").write_bytes(bytes([reader, cut]) + content)
    program = build(compiler)
    print(f"{program} for {seconds} seconds, from {len([*corpus.iterdir()])} inputs", flush=True)
    return subprocess.run(
        [
            program,
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=65536",
            "-print_final_stats=1",
            "-close_fd_mask=1",
            f"-artifact_prefix={found}/",
            corpus,
        ],
        check=False,
    ).returncode


def build(compiler: str) -> Path:
    """The fuzzer, built anew."""
    program = BUILD / "fuzz_requests"
    native = ROOT / "native"
    sources = [Path(__file__).with_name("fuzz_requests.cc"), *(native / source for source in CODEC)]
    sanitizers = "-fsanitize=fuzzer,address,undefined"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-g", sanitizers, "-fno-sanitize-recover=all", f"-I{native}", *sources, "-o",
         program],
        check=True,
    )  # fmt: skip
    return program


def _requests(
    data_type: DataType,
) -> tuple[
    predict_pb.PredictRequest, predict_pb.PredictRequest, infer_pb.ModelInferRequest, infer_pb.ModelInferRequest
]:
    array = np.arange(6).reshape(2, 3).astype(data_type.dtype)
    if data_type is DataType.BOOL:
        array = array != 0
    predict = predict_pb.PredictRequest(model="models/digits/versions/3", output_names=["y"], priority=-3)
    tensor = predict.inputs["pixels"]
    tensor.data_type = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    tensor.shape.extend(array.shape)
    tensor.data = array.tobytes()
    readable = predict_pb.PredictRequest()
    readable.CopyFrom(predict)
    if data_type.is_floating:
        readable.inputs["pixels"].floats.values.extend(array.ravel().tolist())
    else:
        readable.inputs["pixels"].ints.values.extend(map(int, array.ravel().tolist()))
    raw = infer_pb.ModelInferRequest(model_name="digits", model_version="3", id="7")
    raw.parameters["priority"].uint64_param = 7
    raw.parameters["timeout"].int64_param = 50_000
    raw.inputs.add(name="pixels", datatype=data_type, shape=array.shape)
    raw.outputs.add(name="y").parameters["binary_data"].bool_param = True
    typed = infer_pb.ModelInferRequest()
    typed.CopyFrom(raw)
    raw.raw_input_contents.append(array.tobytes())
    contents = typed.inputs[0].contents
    if data_type is DataType.BOOL:
        contents.bool_contents.extend(array.ravel().tolist())
    elif data_type.is_floating:
        (contents.fp64_contents if data_type is DataType.FP64 else contents.fp32_contents).extend(range(6))
    elif data_type is DataType.INT64:
        contents.int64_contents.extend(range(6))
    elif data_type is DataType.UINT64:
        contents.uint64_contents.extend(range(6))
    else:
        (contents.uint_contents if data_type.startswith("U") else contents.int_contents).extend(range(6))
    return predict, readable, raw, typed


if __name__ == "__main__":
    sys.exit(main())
