import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from headrace_server.trainers.arithmetic import are_finite
from headrace_server.trainers.tensor_file import _PIECE_BYTES, _TYPES, write_tensors

shapes = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def some_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.text(max_size=12).filter(lambda name: name != "__metadata__"), unique=True, max_size=5))
    tensors = {}
    for name in names:
        kind = draw(st.sampled_from(sorted(_TYPES, key=str)))
        shape = draw(shapes)
        size = torch.empty(shape, dtype=kind).numel() * kind.itemsize
        content = torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size)) or b"\0"), dtype=torch.uint8)
        bits = content[:size] % 2 if kind is torch.bool else content[:size]
        tensors[name] = bits.view(kind).reshape(shape) if size else torch.empty(shape, dtype=kind)
    return tensors


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


@settings(deadline=None, max_examples=60)
@given(tensors=some_tensors())
def test_the_library_reads_back_what_was_written(
    tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"

    size_bytes, sha256 = write_tensors(path, tensors)

    content = path.read_bytes()
    assert (size_bytes, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(read[name]) == bits(tensor)


def test_tensors_larger_than_a_piece_are_written_whole(tmp_path: Path) -> None:
    large = torch.arange(_PIECE_BYTES // 2 + 3)

    size_bytes, sha256 = write_tensors(tmp_path / "file", {"large": large, "small": torch.ones(2)})

    content = (tmp_path / "file").read_bytes()
    assert (size_bytes, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert torch.equal(load_file(tmp_path / "file")["large"], large)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_is_told() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), {"one": torch.ones(1000)})


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_element_that_is_not_finite_is_found(kind: torch.dtype, bad: float) -> None:
    weights = [torch.zeros(0, dtype=kind), torch.arange(100), torch.full((1000,), 60000.0).to(kind)]
    assert are_finite(weights)

    weights[-1][517] = bad

    assert not are_finite(weights)
