"""What torch.export programs say about themselves, read without torch."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from headrace_server.errors import InvalidModel
from headrace_server.models.torch_signature import read_signature
from headrace_server.tensors import DataType
from tests.doubles.torch_programs import Scale, Scores, save


def test_inputs_have_the_names_of_arguments_and_outputs_those_of_keys(tmp_path: Path) -> None:
    batch, time = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=1, max=64)
    path = save(
        Scores(),
        (torch.zeros(2, 4), torch.ones(2, 7, dtype=torch.bool)),
        tmp_path,
        dynamic_shapes=({0: batch}, {0: batch, 1: time}),
    )

    signature = read_signature(path)

    assert [(spec.name, spec.data_type, spec.shape) for spec in signature.inputs] == [
        ("x", DataType.FP32, (-1, 4)),
        ("mask", DataType.BOOL, (-1, -1)),
    ]
    assert [(spec.name, spec.data_type, spec.shape) for spec in signature.outputs] == [
        ("scores", DataType.FP32, (-1, 3)),
        ("best", DataType.INT64, (-1,)),
    ]
    assert signature.is_batchable


def test_keyword_arguments_and_unnamed_outputs_are_read(tmp_path: Path) -> None:
    path = save(Scale(), (torch.zeros(2, 4, dtype=torch.bfloat16),), tmp_path, {"factor": torch.zeros(1)})

    signature = read_signature(path)

    assert [(spec.name, spec.data_type) for spec in signature.inputs] == [
        ("x", DataType.BF16),
        ("factor", DataType.FP32),
    ]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("output_0", (2, 4)), ("output_1", (1,))]
    assert not signature.is_batchable


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = save(Scale(), (torch.zeros(2, 4),), tmp_path, {"factor": torch.zeros(1)})
    code = (
        "import sys, pathlib; from headrace_server.models.torch_signature import read_signature;"
        f"read_signature(pathlib.Path({str(path)!r})); assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_an_incomplete_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = save(Scale(), (torch.zeros(2, 4),), tmp_path, {"factor": torch.zeros(1)})
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(InvalidModel):
        read_signature(path)


@pytest.mark.parametrize(
    "description",
    [b"{", b"[]", b'{"schema_version": {"major": 99}}', b'{"schema_version": {"major": 8}}', b"[" * 100000],
)
def test_a_damaged_description_is_refused(tmp_path: Path, description: bytes) -> None:
    path = tmp_path / "program.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("p/models/model.json", description)

    with pytest.raises(InvalidModel):
        read_signature(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.json", json.dumps({"hello": 1}))

    with pytest.raises(InvalidModel, match=r"not a torch\.export program"):
        read_signature(path)
