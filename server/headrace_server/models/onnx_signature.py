"""Reads what an ONNX file accepts and returns, and refuses files that this server cannot or must not run.

Checked: that it is ONNX and complete, its operator sets, that every operator is known to the runtime without libraries
of its own, that weights outside the file are plain files beside it, and that ONNX Runtime can build a session from it.
The ONNX packages are imported on first use.  Everything here blocks: call it on a thread.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from headrace_server.errors import InvalidModel
from headrace_server.kernels import onnx_programs
from headrace_server.precision import Precision
from headrace_server.storage.file_state import FileState
from headrace_server.tensors import DataType, Signature, TensorSpec

# onnx.proto, TensorProto.DataType.
ONNX_TYPES = {
    DataType.FP32: 1, DataType.UINT8: 2, DataType.INT8: 3, DataType.UINT16: 4, DataType.INT16: 5, DataType.INT32: 6,
    DataType.INT64: 7, DataType.STRING: 8, DataType.BOOL: 9, DataType.FP16: 10, DataType.FP64: 11, DataType.UINT32: 12,
    DataType.UINT64: 13, DataType.BF16: 16, DataType.FP8_E4M3: 17, DataType.FP8_E5M2: 19,
}  # fmt: skip
_DATA_TYPES = {number: data_type for data_type, number in ONNX_TYPES.items()}
_PRECISIONS = {1: Precision.FP32, 10: Precision.FP16, 16: Precision.BF16}
_EXTERNAL = 1

KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Whose operators ONNX Runtime brings along; any other needs a library of its own, which a server must not load."""
_ERRORS_ONLY = 3


def read_signature(path: Path, *, may_have_companions: bool) -> Signature:
    """Check a file and return what it accepts and returns.

    Weights outside the file are accepted only with `may_have_companions`, and only from plain files in the same folder.

    Raises InvalidModel with what is wrong.
    """
    model = _parse(path)
    _check_operator_sets(model)
    companions = _external_files(model)
    if companions and not may_have_companions:
        raise InvalidModel(
            "its weights are in other files, which an upload does not carry: save the model as one file", format="ONNX"
        )
    for companion in companions:
        check_companion(path.parent, companion)
    _check(path)
    _build_session(path)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return Signature(
        inputs=tuple(_spec(value) for value in inputs),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def companions_of(path: Path) -> list[str]:
    """The names of the files, beside this one, that hold some of its weights.  Raises InvalidModel."""
    return sorted(_external_files(_parse(path)))


def check_companion(folder: Path, name: str) -> None:
    """Raise InvalidModel unless `name` is a plain file directly in the folder, and no link out of it."""
    if Path(name).name != name or name in {"", ".", ".."} or "\\" in name:
        raise InvalidModel(f"its weights are in {name!r}: only files in the same folder are read", format="ONNX")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise InvalidModel(f"its weights are in {name!r}, which is not a file beside the model", format="ONNX")


def dominant_precision(path: Path) -> Precision:
    """The number format of most of the floating-point weights; FP32 when there are none.

    A file that was looked at before, and has not been touched since, is not read again.
    """
    return _dominant_precision(FileState.of(path))


@lru_cache(maxsize=1024)
def _dominant_precision(file: FileState) -> Precision:
    elements: Counter[int] = Counter()
    for tensor in _tensors(_parse(file.path)):
        if tensor.data_type in _PRECISIONS:
            count = 1
            for length in tensor.dims:
                count *= length
            elements[tensor.data_type] += count
    return _PRECISIONS[elements.most_common(1)[0][0]] if elements else Precision.FP32


def _parse(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common type below Exception
        raise InvalidModel("not an ONNX file, or an incomplete one", format="ONNX") from error
    if not model.HasField("graph") or not model.graph.output:
        raise InvalidModel("not an ONNX file: it has no graph with outputs", format="ONNX")
    return model


def _check_operator_sets(model: Any) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version > newest:
            raise InvalidModel(f"it needs ONNX operator set {opset.version}; this server knows up to {newest}")
    own = {function.domain for function in model.functions}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    foreign = {node.domain for body in bodies for node in _nodes(body)} - KNOWN_DOMAINS - own
    if foreign:
        raise InvalidModel(f"it uses operators that are not part of ONNX: domain {', '.join(sorted(foreign))}")


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise InvalidModel(f"the ONNX checker refuses it: {_first_line(error)}", format="ONNX") from error
    except (ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise InvalidModel(f"the ONNX checker cannot read it: {_first_line(error)}", format="ONNX") from error


def _build_session(path: Path) -> None:
    try:
        if onnx_programs.can_open():
            onnx_programs.open_program(path, num_threads=1, input_names=[], output_names=[], optimises=False)
        else:
            _build_with_package(path)
    except Exception as error:  # the runtime's errors have no common type below Exception
        raise InvalidModel(f"ONNX Runtime cannot run it: {_first_line(error)}", format="ONNX") from error


def _build_with_package(path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    # Only to see whether it can be built: optimising is for the one that will serve.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _spec(value: Any) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise InvalidModel(f"{value.name!r} is not a tensor", format="ONNX")
    tensor = value.type.tensor_type
    data_type = _DATA_TYPES.get(tensor.elem_type)
    if data_type is None:
        raise InvalidModel(f"{value.name!r} has an element type that this server does not carry", format="ONNX")
    # Exporters leave a length out, name it, or write 0 or -1 for "any".
    shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, data_type=data_type, shape=shape)


def _external_files(model: Any) -> set[str]:
    files: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location == _EXTERNAL:
            files.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    return files


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor that is stored anywhere in the model."""
    graphs = [model.graph]
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices


def _nodes(body: Iterable[Any]) -> Iterator[Any]:
    """The nodes of a body, and those of the bodies of its loops and branches."""
    pending = list(body)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                pending.extend(attribute.g.node)
            for graph in attribute.graphs:
                pending.extend(graph.node)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
