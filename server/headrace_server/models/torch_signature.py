"""Reads what a torch.export program (.pt2) accepts and returns, without torch and without running anything of it.

A .pt2 file is a zip archive (PyTorch 2.13, torch/export/pt2_archive/constants.py and torch/_export/serde/schema.py):
`{name}/models/model.json` describes the graph, `{name}/data/` holds weights.  This module reads the description only.

Loading such a file for real can execute code that its author chose.  In PyTorch 2.13, torch.export.load unpickles
objects at will for weights and constants marked `use_pickle`, for `opaque_obj_*` and `custom_obj_*` constants and for
sample inputs that do not load otherwise; it evaluates symbolic expressions with sympy, looks up operators by dotted
names below `torch`, and loads the shared libraries of `data/aotinductor`.  Therefore such files are never taken from
the network unless the setting `models.accept_torch_uploads` says that everybody who may upload is trusted like an
administrator.  Our own trainers' exports, verified by digest, and files that the operator names are always taken.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

from headrace_server.errors import InvalidModel
from headrace_server.tensors import DataType, Signature, TensorSpec

LARGEST_DESCRIPTION_BYTES = 256 << 20
SCHEMA_MAJOR = 8

# torch/_export/serde/schema.py, ScalarType.
_DATA_TYPES = {
    1: DataType.UINT8, 2: DataType.INT8, 3: DataType.INT16, 4: DataType.INT32, 5: DataType.INT64, 6: DataType.FP16,
    7: DataType.FP32, 8: DataType.FP64, 12: DataType.BOOL, 13: DataType.BF16, 28: DataType.UINT16,
    29: DataType.FP8_E4M3, 30: DataType.FP8_E5M2, 34: DataType.UINT32, 35: DataType.UINT64,
}  # fmt: skip


def read_signature(path: Path) -> Signature:
    """The flat inputs and outputs of the program, in its own order.  Blocks.

    Inputs have the names of the arguments of `forward`; outputs the keys of the dictionary that it returns, or else
    "output", "output_0", "output_1"….  Raises InvalidModel.
    """
    program = _read_description(path)
    try:
        graph = program["graph_module"]
        values = graph["graph"]["tensor_values"]
        inputs = [spec["user_input"]["arg"] for spec in graph["signature"]["input_specs"] if "user_input" in spec]
        outputs = [spec["user_output"]["arg"] for spec in graph["signature"]["output_specs"] if "user_output" in spec]
        root = next(call for call in graph["module_call_graph"] if call["fqn"] == "")["signature"]
        input_names = _input_names(root, inputs)
        output_names = _output_names(root, len(outputs))
        return Signature(
            inputs=tuple(_spec(name, arg, values) for name, arg in zip(input_names, inputs, strict=True)),
            outputs=tuple(_spec(name, arg, values) for name, arg in zip(output_names, outputs, strict=True)),
        )
    except (KeyError, TypeError, ValueError, StopIteration, IndexError, AttributeError) as error:
        raise InvalidModel("the description of the torch.export program is damaged", format="TORCH_EXPORT") from error


def _read_description(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if info.filename.endswith("/models/model.json")]
            if len(found) != 1:
                raise InvalidModel("not a torch.export program: it does not hold exactly one models/model.json")
            if found[0].file_size > LARGEST_DESCRIPTION_BYTES:
                raise InvalidModel("the description of the torch.export program is too large")
            program = json.loads(archive.read(found[0]))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise InvalidModel("not a torch.export program: it is not a complete zip archive") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidModel("the description of the torch.export program is damaged") from error
    version = program.get("schema_version") if isinstance(program, dict) else None
    if not isinstance(version, dict) or version.get("major") != SCHEMA_MAJOR:
        raise InvalidModel(
            f"the torch.export program has schema {version}, this server reads version {SCHEMA_MAJOR}: "
            "export it again with PyTorch 2.13"
        )
    return program


def _input_names(root: Any, inputs: list[Any]) -> list[str]:
    names = root.get("forward_arg_names")
    if names is not None and len(names) == len(inputs):
        return [str(name) for name in names]
    return [_tensor_name(arg) for arg in inputs]


def _output_names(root: Any, count: int) -> list[str]:
    _, tree = json.loads(root["out_spec"])
    if tree["type"] == "builtins.dict":
        keys = json.loads(tree["context"])
        if len(keys) == count and all(isinstance(key, str) for key in keys):
            return [str(key) for key in keys]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _tensor_name(arg: Any) -> str:
    if "as_tensor" not in arg:
        raise InvalidModel(f"the program has an input or output that is no tensor ({next(iter(arg), 'nothing')})")
    return str(arg["as_tensor"]["name"])


def _spec(name: str, arg: Any, values: Any) -> TensorSpec:
    meta = values[_tensor_name(arg)]
    data_type = _DATA_TYPES.get(meta["dtype"])
    if data_type is None:
        raise InvalidModel(f"{name!r} has an element type that this server does not carry (torch's {meta['dtype']})")
    shape = tuple(int(size["as_int"]) if "as_int" in size else -1 for size in meta["sizes"])
    return TensorSpec(name=name, data_type=data_type, shape=shape)
