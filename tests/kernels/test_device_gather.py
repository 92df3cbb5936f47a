"""The twin of gather on a GPU: what it refuses anywhere, and what it computes where there is a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace_server import _native
from headrace_server.kernels import device_gather as kernels, reference
from headrace_server.kernels.device_gather import DeviceRows
from headrace_server.tensors import Array, DataType
from tests.kernels.bits import assert_same_bits, bits

if TYPE_CHECKING:
    import torch

FP32, FP64, FP16, BF16 = DataType.FP32, DataType.FP64, DataType.FP16, DataType.BF16
PAIRS = sorted(
    (DataType.of(source), DataType.of(into)) for source, into in reference.CONVERSIONS
) + [(data_type, data_type) for data_type in DataType if data_type is not DataType.STRING]  # fmt: skip
BATCH = DeviceRows(0x10000, 8)
LARGEST = 2**63 - 1


REFUSED_GATHERS = {
    "no address": ([DeviceRows(0, 1)], FP32, BATCH, 6, ValueError, "source 0 has rows but no address"),
    "no address of the batch": ([], FP32, DeviceRows(0, 8), 6, ValueError, "batch has rows but no address"),
    "fewer than no rows": ([DeviceRows(64, -1)], FP32, BATCH, 6, ValueError, "source 0 has a negative number of rows"),
    "a batch of fewer than no rows": ([], FP32, DeviceRows(64, -1), 6, ValueError, "batch has a negative number"),
    "a row of fewer than no elements": ([], FP32, BATCH, -6, ValueError, "negative number of elements"),
    "too many rows": ([DeviceRows(64, 8), DeviceRows(64, 1)], FP32, BATCH, 6, ValueError, "source 1 has 1 rows, but"),
    "more bytes than can be counted": ([], FP32, DeviceRows(64, LARGEST), 6, ValueError, "batch is larger than"),
    "a row of more bytes than can be counted": ([], FP32, BATCH, LARGEST, ValueError, "row is larger than"),
    "an end outside of memory": ([DeviceRows(2**64 - 64, 8)], FP32, BATCH, 6, ValueError, "source 0 is larger than"),
    "an odd address": ([DeviceRows(66, 1)], FP32, BATCH, 6, ValueError, "source 0 does not begin at a multiple of 4"),
    "an overlap": ([DeviceRows(0x10000 + 12, 2)], FP32, BATCH, 6, BufferError, "source 0 overlaps the batch"),
    "a conversion that there is not": ([], FP64, BATCH, 6, TypeError, "not converted from FP64 to BF16"),
    "text": ([], DataType.STRING, BATCH, 6, TypeError, "no element type STRING"),
    "a negative address": ([DeviceRows(-64, 1)], FP32, BATCH, 6, TypeError, "incompatible function arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_GATHERS)
def test_what_cannot_be_right_is_refused_with_a_sentence_on_any_machine(case: str) -> None:
    sources, source_type, into, row_elements, error, message = REFUSED_GATHERS[case]

    with pytest.raises(error, match=message):
        kernels.gather(sources, source_type, into, BF16, row_elements=row_elements, stream=0)


def test_targets_that_overlap_are_refused_on_any_machine() -> None:
    targets = [DeviceRows(256, 2), DeviceRows(256 + 24, 2)]

    with pytest.raises(BufferError, match="target 0 and target 1 overlap"):
        kernels.scatter(BATCH, FP32, targets, FP32, row_elements=6, stream=0)


@pytest.mark.skipif(_native.cuda_device_count()[0] > 0, reason="this machine has a GPU")
def test_without_a_device_the_error_says_why() -> None:
    _, reason = _native.cuda_device_count()

    with pytest.raises(RuntimeError, match="No CUDA device: ") as caught:
        kernels.gather([DeviceRows(64, 1)], FP32, BATCH, BF16, row_elements=6, stream=0)
    with pytest.raises(RuntimeError, match="No CUDA device"):
        _native.cuda_memory(0)
    with pytest.raises(RuntimeError, match="No CUDA device"):
        _native.cuda_device(0)
    with pytest.raises(RuntimeError, match="No CUDA device: "):
        kernels.scatter(BATCH, BF16, [DeviceRows(64, 1)], FP32, row_elements=6, stream=0)

    assert reason
    assert reason in str(caught.value)


@dataclass(frozen=True)
class Gpu:
    """Arrays in the memory of a device, through torch; bytes in and out, so that any element type travels."""

    torch: Any

    def put(self, array: Array, offset_bytes: int = 0) -> "torch.Tensor":
        """The bytes of an array, from an address that lies `offset_bytes` after a multiple of 256."""
        memory = self.torch.zeros(array.nbytes + offset_bytes + 256, dtype=self.torch.uint8, device="cuda")
        part: torch.Tensor = memory[offset_bytes : offset_bytes + array.nbytes]
        part.copy_(self.torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy()))
        return part

    def get(self, tensor: "torch.Tensor", like: Array) -> Array:
        """What a tensor of bytes holds, as an array of the same type and shape as another."""
        self.torch.cuda.synchronize()
        found: Array = tensor.cpu().numpy().view(like.dtype).reshape(like.shape)
        return found

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream().cuda_stream)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA: it gives the tests no device memory")
    yield Gpu(torch)
    torch.cuda.synchronize()


def blocks_of(row_counts: Sequence[int], row_elements: int, dtype: np.dtype[np.generic]) -> list[Array]:
    """Blocks filled with arbitrary bits."""
    random = np.random.default_rng(len(row_counts) + row_elements)
    largest = 2 if dtype.kind == "b" else 256
    return [
        random.integers(0, largest, (rows, row_elements, dtype.itemsize), np.uint8).view(dtype)[..., 0]
        for rows in row_counts
    ]


def rows_of(tensors: Sequence["torch.Tensor"], arrays: Sequence[Array]) -> list[DeviceRows]:
    return [DeviceRows(tensor.data_ptr(), len(array)) for tensor, array in zip(tensors, arrays, strict=True)]


SHAPES = {
    "one row": ([1], 10),
    "rows and empty blocks": ([3, 0, 1, 7, 0], 33),
    "more blocks than one launch takes": ([1, 2] * 150, 5),
    "one huge block between small ones": ([1, 5000, 2], 513),
    "rows without elements": ([2, 3], 0),
    "no blocks": ([], 8),
}


@pytest.mark.gpu
@pytest.mark.parametrize("offset_elements", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_gather_on_the_device_writes_what_the_reference_writes_and_nothing_else(
    gpu: Gpu, pair: tuple[DataType, DataType], shape: str, offset_elements: int
) -> None:
    row_counts, row_elements = SHAPES[shape]
    sources = blocks_of(row_counts, row_elements, pair[0].dtype)
    [batch] = blocks_of([sum(row_counts) + 2], row_elements, pair[1].dtype)
    on_device = [gpu.put(source, offset_elements * source.itemsize) for source in sources]
    into = gpu.put(batch, offset_elements * batch.itemsize)

    num_rows = kernels.gather(
        rows_of(on_device, sources), pair[0], DeviceRows(into.data_ptr(), len(batch)), pair[1],
        row_elements=row_elements, stream=gpu.stream(),
    )  # fmt: skip

    assert num_rows == reference.gather(sources, batch)
    assert_same_numbers(gpu.get(into, batch), batch)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_scatter_on_the_device_writes_what_the_reference_writes(
    gpu: Gpu, pair: tuple[DataType, DataType], shape: str
) -> None:
    row_counts, row_elements = SHAPES[shape]
    [batch] = blocks_of([sum(row_counts) + 2], row_elements, pair[0].dtype)
    targets = blocks_of(row_counts, row_elements, pair[1].dtype)
    source, on_device = gpu.put(batch), [gpu.put(target) for target in targets]

    num_rows = kernels.scatter(
        DeviceRows(source.data_ptr(), len(batch)), pair[0], rows_of(on_device, targets), pair[1],
        row_elements=row_elements, stream=gpu.stream(),
    )  # fmt: skip

    assert num_rows == reference.scatter(batch, targets)
    for tensor, target in zip(on_device, targets, strict=True):
        assert_same_numbers(gpu.get(tensor, target), target)


@pytest.mark.gpu
def test_the_copy_runs_in_the_order_of_the_callers_stream(gpu: Gpu) -> None:
    source, batch = np.ones((1000, 1000), np.float32), np.zeros((1000, 1000), np.float32)
    on_device, into = gpu.put(source), gpu.put(batch)
    stream = gpu.torch.cuda.Stream()
    gpu.torch.cuda.synchronize()

    with gpu.torch.cuda.stream(stream):
        gpu.torch.cuda._sleep(100_000_000)
        on_device.zero_()
        kernels.gather(
            rows_of([on_device], [source]), FP32, DeviceRows(into.data_ptr(), 1000), FP32,
            row_elements=1000, stream=stream.cuda_stream,
        )  # fmt: skip
        is_still_busy = not stream.query()

    assert is_still_busy
    assert not gpu.get(into, batch).any()


@pytest.mark.gpu
def test_a_gather_can_be_captured_in_a_graph_and_replayed(gpu: Gpu) -> None:
    source, batch = np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float16)
    on_device, into = gpu.put(source), gpu.put(batch)
    graph = gpu.torch.cuda.CUDAGraph()
    with gpu.torch.cuda.graph(graph):
        kernels.gather(
            rows_of([on_device], [source]), FP32, DeviceRows(into.data_ptr(), 4), FP16,
            row_elements=8, stream=gpu.stream(),
        )  # fmt: skip

    on_device.copy_(gpu.put(np.full((4, 8), 2, np.float32)))
    graph.replay()

    assert (gpu.get(into, batch) == 2).all()


@pytest.mark.gpu
def test_an_address_on_the_host_is_refused_and_the_device_stays_usable(gpu: Gpu) -> None:
    host, batch = np.zeros((1, 8), np.float32), np.zeros((1, 8), np.float32)
    into = gpu.put(batch)

    with pytest.raises(ValueError, match="not in device memory"):
        kernels.gather(
            [DeviceRows(host.__array_interface__["data"][0], 1)], FP32, DeviceRows(into.data_ptr(), 1), FP32,
            row_elements=8, stream=gpu.stream(),
        )  # fmt: skip

    gpu.torch.cuda.synchronize()
    assert not gpu.get(into, batch).any()


def assert_same_numbers(actual: Array, expected: Array) -> None:
    """Equal in every bit; where NaN is expected, any NaN (a device's conversions drop its sign)."""
    if expected.dtype.kind in "fV":
        both_nan = np.isnan(actual) & np.isnan(expected)
        differ = (bits(actual) != bits(expected)) & ~both_nan
        assert not differ.any()
    else:
        assert_same_bits(actual, expected)
