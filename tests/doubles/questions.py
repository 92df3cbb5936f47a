"""Questions to a door: predictions of every form, those that it answers by itself, and those that nobody can answer."""

from typing import Any

import numpy as np

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as oip
from tests.native.plane.messages import joined


def tensor(values: list[Any], data_type: str = "FP32", dtype: str = "<f4") -> tensor_pb2.Tensor:
    array = np.array(values, dtype=dtype)
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    return tensor_pb2.Tensor(data_type=number, shape=array.shape, data=array.tobytes())


def predict(model: str = "models/double", values: list[Any] | None = None, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(model=model, inputs={"x": tensor(values or [[1, 2]])}, **fields)


def readable(model: str, data_type: str, shape: list[int], **form: Any) -> pb.PredictRequest:
    """With values instead of bytes: `floats`, `ints` or `strings`."""
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    content: Any = {name: {"values": values} for name, values in form.items()}
    return pb.PredictRequest(
        model=f"models/{model}", inputs={"x": tensor_pb2.Tensor(data_type=number, shape=shape, **content)}
    )


def infer(model: str = "double", **fields: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    return request


def raw(model: str, datatype: str, array: np.ndarray[Any, Any]) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
    request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    return request


def changed(request: oip.ModelInferRequest, **fields: Any) -> oip.ModelInferRequest:
    """With something else said of its input."""
    tensor = request.inputs[0]
    for name, value in fields.items():
        if name == "shape":
            tensor.shape[:] = value
        else:
            setattr(tensor, name, value)
    return request


def texts(model: str, contents: list[bytes], *, is_raw: bool) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[len(contents)])
    if is_raw:
        request.raw_input_contents.append(joined(contents))
    else:
        tensor.contents.bytes_contents.extend(contents)
    return request


def with_parameter(request: oip.ModelInferRequest, key: str, number: int) -> oip.ModelInferRequest:
    request.parameters[key].int64_param = number
    return request


IMPOSSIBLE_SHAPES = [
    *([-1, 2], [1, -2], [-1, -2], [0, 2], [2], [], [3, 2], [1] * 33),
    *([2**62, 4], [2**32, 2**32], [2**63 - 1, 2**63 - 1], [2**61 + 1, 8]),
]
"""Of 8 bytes in two numbers; products of some are the right number once they overflow."""

PREDICTIONS: list[pb.PredictRequest] = [
    predict(),
    predict("models/double/versions/1", [[1, 2], [3, 4]], output_names=["y", "y"], priority=7),
    predict(content_format=pb.PredictRequest.CONTENT_FORMAT_VALUES),
    predict("models/nobody"),
    predict("models/double/versions/9"),
    predict("models/double@nobody"),
    predict("double"),
    predict(values=[[1, 2, 3]]),
    predict(values=[[1, float("nan")]]),
    predict(output_names=["z"]),
    predict(priority=101),
    pb.PredictRequest(
        model="models/double",
        inputs={"x": tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 2], data=b"1234")},
    ),
    *(
        pb.PredictRequest(
            model="models/double",
            inputs={"x": tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=shape, data=bytes(8))},
        )
        for shape in IMPOSSIBLE_SHAPES
    ),
    pb.PredictRequest(model="models/double", inputs={"x": tensor([[1, 2]]), "z": tensor([[1, 2]])}),
    pb.PredictRequest(model="models/double"),
    pb.PredictRequest(model="models/look", inputs={"x": tensor([1, 3], "INT64", "<i8")}),
    pb.PredictRequest(model="models/look", inputs={"x": tensor([99], "INT64", "<i8")}),
    pb.PredictRequest(model="models/sum", inputs={"x": tensor([[1, 2], [3, 4]])}),
    pb.PredictRequest(model="models/half", inputs={"x": tensor([[1, 2]], "FP16", "<f2")}),
    pb.PredictRequest(model="models/flags", inputs={"x": tensor([[True, False]], "BOOL", "?")}),
    pb.PredictRequest(model="models/whole", inputs={"x": tensor([1, -2, 3], "INT8", "i1")}),
    readable("double", "FP32", [1, 2], floats=[0.1, -2]),
    readable("double", "FP32", [1, 2], floats=[0.1, 1e39]),
    readable("double", "FP32", [1, 2], floats=[0.1, float("nan")]),
    readable("double", "FP32", [1, 2], ints=[1, 2]),
    readable("double", "FP32", [1, 2], strings=["1", "2"]),
    readable("half", "FP16", [1, 2], floats=[0.1, -2]),
    readable("flags", "BOOL", [1, 2], ints=[0, 1]),
    readable("flags", "BOOL", [1, 2], ints=[0, 2]),
    readable("whole", "INT8", [3], ints=[1, -128, 127]),
    readable("whole", "INT8", [3], ints=[1, -128, 128]),
    readable("look", "INT64", [2], ints=[1, 3]),
    readable("half", "FP16", [1, 2], floats=[0.1, 65519.9]),
    readable("half", "FP16", [1, 2], floats=[0.1, 65520]),
    readable("half", "FP16", [1, 2], floats=[0.1, float("nan")]),
    readable("half", "BF16", [1, 2], floats=[0.1, -2]),
    readable("colours", "STRING", [4], strings=["gr\u00fcn", "red", "", "mauve"]),
    readable("colours", "STRING", [2, 1], strings=["red", "red"]),
    readable("colours", "STRING", [2], strings=["red"]),
    readable("colours", "INT64", [2], ints=[1, 7]),
    readable("strict", "STRING", [2], strings=["yes", "no"]),
    readable("strict", "STRING", [2], strings=["yes", ""]),
    readable("strict", "STRING", [2], strings=["yes", "maybe"]),
    readable("texts", "STRING", [1, 2], strings=["a", "b"]),
    pb.PredictRequest(
        model="models/brain",
        inputs={"x": tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BF16, shape=[1, 2], data=b"\x80\x3f\0\x40")},
    ),
    readable("brain", "BF16", [1, 2], floats=[0.1, -2]),
]
INFERENCES: list[oip.ModelInferRequest] = [
    infer(),
    infer(id="7", model_version="1"),
    infer("double@default"),
    infer("nobody"),
    with_parameter(infer(), "priority", 1),
    with_parameter(infer(), "priority", 999),
    with_parameter(infer(), "timeout", 5_000_000),
    with_parameter(infer(), "sequence_id", 3),
    raw("half", "FP16", np.array([[1, 2]], np.float16)),
    raw("flags", "BOOL", np.array([[True, False]])),
    raw("whole", "INT8", np.array([1, 2, 3], np.int8)),
    raw("look", "INT64", np.array([1, 2, 3], np.int64)),
    raw("look", "INT64", np.array([99], np.int64)),
    raw("double", "FP32", np.array([[np.inf, 1]], np.float32)),
    raw("double", "FP64", np.array([[1, 1]], np.float64)),
    *(changed(raw("double", "FP32", np.ones((1, 2), "<f4")), shape=shape) for shape in IMPOSSIBLE_SHAPES),
    *(changed(infer(), shape=shape) for shape in IMPOSSIBLE_SHAPES),
    changed(raw("double", "FP32", np.ones((1, 2), "<f4")), datatype="FP99"),
    oip.ModelInferRequest(model_name="double"),
    oip.ModelInferRequest(model_name="double", inputs=[infer().inputs[0], infer().inputs[0]]),
    oip.ModelInferRequest(model_name="double", inputs=infer().inputs, raw_input_contents=[bytes(8)]),
    oip.ModelInferRequest(model_name="double", inputs=infer().inputs, raw_input_contents=[bytes(8), bytes(8)]),
    oip.ModelInferRequest(
        model_name="double",
        inputs=[raw("double", "FP32", np.ones((1, 2), "<f4")).inputs[0], infer().inputs[0]],
        raw_input_contents=[bytes(8)],
    ),
    *(infer(model_version=version) for version in ("9", "0", "-1", "one", "99999999999999999999")),
    infer("double@default", model_version="1"),
    infer("double/versions/1"),
    *(
        infer(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names])
        for names in (["y"], ["z"], ["y", "y"])
    ),
    raw("brain", "BF16", np.array([[0x3F80, 0x4000]], np.uint16)),
    texts("colours", ["gr\u00fcn".encode(), b"mauve"], is_raw=True),
    texts("colours", ["gr\u00fcn".encode(), b"mauve"], is_raw=False),
    texts("colours", [b"\xff"], is_raw=True),
    texts("strict", [b"no", b"yes", b"no"], is_raw=True),
    texts("strict", [b"no", b""], is_raw=False),
    texts("strict", [], is_raw=False),
    texts("double", [b"1", b"2"], is_raw=True),
]
