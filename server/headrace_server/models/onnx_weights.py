"""Puts other weights into an ONNX program whose weights have names.  Nothing is unpickled, nothing is run.

The ONNX packages are imported on first use.  Everything here blocks: call it on a thread.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace_server.errors import InvalidModel

LARGEST_PROGRAM_BYTES = 2_000_000_000  # the limit of protobuf is 2 GiB

# The header of safetensors to onnx.proto, TensorProto.DataType.
_TYPES = {
    "F32": 1, "U8": 2, "I8": 3, "U16": 4, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11, "U32": 12,
    "U64": 13, "BF16": 16,
}  # fmt: skip
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def put_weights(program: Path, names: Mapping[str, str], weights: Path, result: Path) -> None:
    """Write `program` to `result` with the tensors of a safetensors file as its weights.

    `names` maps each initializer of the program that is to be replaced to the name of a tensor.  Element types and
    shapes must be those that the program has.  Raises InvalidModel, which names the first tensor that does not fit,
    or OSError.
    """
    import onnx

    tensors = _read(weights)
    model = onnx.load(program)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, source in names.items():
        if name not in initializers:
            raise InvalidModel(f"the program has no weights called {name!r}")
        if source not in tensors:
            raise InvalidModel(f"there is no tensor {source!r} among the weights")
        _put(tensors[source], source, initializers[name])
    result.write_bytes(model.SerializeToString())


def _read(weights: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError, deserialize

    try:
        return dict(deserialize(weights.read_bytes()))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InvalidModel(f"the weights cannot be read: {error}") from error


def _put(tensor: Mapping[str, Any], source: str, initializer: Any) -> None:
    have = (_TYPES.get(tensor["dtype"]), tuple(tensor["shape"]))
    want = (initializer.data_type, tuple(initializer.dims))
    if have != want:
        raise InvalidModel(
            f"{source!r} is {tensor['dtype']}{list(have[1])}, the program has element type {want[0]}{list(want[1])}"
        )
    for field in _TYPED_FIELDS:
        initializer.ClearField(field)
    initializer.raw_data = bytes(tensor["data"])
