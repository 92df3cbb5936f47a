"""What ONNX files say about themselves, and which are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace_server.errors import InvalidModel
from headrace_server.models.onnx_signature import ONNX_TYPES, companions_of, dominant_precision, read_signature
from headrace_server.precision import Precision
from headrace_server.tensors import DataType, Signature
from tests.doubles.onnx_models import identity, lookup, mlp, model, scale


def read(tmp_path: Path, program: onnx.ModelProto, may_have_companions: bool = False) -> Signature:
    path = tmp_path / "model.onnx"
    path.write_bytes(program.SerializeToString())
    return read_signature(path, may_have_companions=may_have_companions)


@pytest.mark.parametrize("data_type", [kind for kind in DataType if kind not in {DataType.FP8_E4M3, DataType.FP8_E5M2}])
def test_every_type_of_the_contract_is_read(tmp_path: Path, data_type: DataType) -> None:
    signature = read(tmp_path, identity(ONNX_TYPES[data_type]))

    assert signature.inputs[0].data_type == signature.outputs[0].data_type == data_type


def test_named_unnamed_and_zero_axes_are_free_and_others_are_not(tmp_path: Path) -> None:
    program = identity(TensorProto.FLOAT, ("batch", 3, "time"))
    program.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_param")

    assert read(tmp_path, program).inputs[0].shape == (-1, 3, -1)


def test_an_output_of_which_nobody_knows_how_many_axes_it_has_is_refused(tmp_path: Path) -> None:
    program = scale()
    program.graph.output[0].type.tensor_type.ClearField("shape")

    with pytest.raises(InvalidModel, match="shape"):
        read(tmp_path, program)


def test_an_operator_of_somebody_else_is_refused_also_inside_a_branch(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Spy", ["x"], ["b"], domain="evil.corp")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])],
    )
    program = model(
        [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
        [("x", TensorProto.FLOAT, ["n"]), ("yes", TensorProto.BOOL, [])],
        [("y", TensorProto.FLOAT, ["n"])],
        domains=["evil.corp"],
    )

    with pytest.raises(InvalidModel, match=r"evil\.corp"):
        read(tmp_path, program)


def test_an_operator_set_of_the_future_is_refused(tmp_path: Path) -> None:
    program = scale()
    program.opset_import[0].version = 999

    with pytest.raises(InvalidModel, match="operator set 999"):
        read(tmp_path, program)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "folder/weights", "", "..", "missing.bin"])
def test_weights_outside_the_folder_or_missing_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"0" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_bytes(b"0" * 100)
    program = scale()
    tensor = program.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    inner = tmp_path / "inner"
    inner.mkdir()

    with pytest.raises(InvalidModel, match="weights"):
        read(inner, program, may_have_companions=True)
    with pytest.raises(InvalidModel, match="weights are in other files"):
        read(inner, program)


def test_a_link_beside_the_model_is_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(scale(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "elsewhere")

    assert companions_of(path) == ["weights.bin"]
    with pytest.raises(InvalidModel, match="not a file beside the model"):
        read_signature(path, may_have_companions=True)


def test_what_the_checker_or_the_runtime_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    unknown = scale()
    unknown.graph.node[0].op_type = "NoSuchOperator"
    mismatched = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 3])],
        [("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.zeros((5, 2), np.float32), "w")],
    )

    with pytest.raises(InvalidModel, match="NoSuchOperator"):
        read(tmp_path, unknown)
    with pytest.raises(InvalidModel, match="ONNX Runtime cannot run it"):
        read(tmp_path, mismatched)


def test_inputs_that_are_no_tensors_or_of_a_foreign_type_are_refused(tmp_path: Path) -> None:
    sequence = scale()
    kind = sequence.graph.input[0].type
    kind.Clear()
    kind.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT

    with pytest.raises(InvalidModel):
        read(tmp_path, sequence)
    with pytest.raises(InvalidModel):
        read(tmp_path, identity(TensorProto.COMPLEX64))


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 1000])
def test_a_file_cut_anywhere_is_refused_not_crashed_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(mlp((4, 8, 2)).SerializeToString()[: -cut or None][:-1])

    with pytest.raises(InvalidModel):
        read_signature(path, may_have_companions=False)


def test_the_precision_is_that_of_most_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    half = numpy_helper.from_array(np.zeros((100, 2), np.float16), "half")
    program = scale()
    program.graph.initializer.append(half)
    path.write_bytes(program.SerializeToString())
    assert dominant_precision(path) is Precision.FP16

    path.write_bytes(lookup().SerializeToString())
    assert dominant_precision(path) is Precision.FP32
