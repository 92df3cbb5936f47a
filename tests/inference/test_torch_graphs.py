"""Programs on a GPU.  Run wherever there is one."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.halves import InHalves
from headrace_server.inference.backends.torch_graphs import MOST_GRAPHS, GraphSession, open_on_gpu
from headrace_server.memory import free_device_bytes, taken_bytes
from headrace_server.precision import Precision
from headrace_server.tensors import Signature
from tests.doubles.torch_programs import save
from tests.inference.plans.programs import BATCH, signature, torch_sources

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def opened(module: nn.Module, folder: Path, precision: Precision = Precision.FP32, width: int = 4) -> GraphSession:
    (path,) = torch_sources(module, folder, width).values()
    of: Signature = signature(width, 3)
    return open_on_gpu(path, of, device="cuda:0", precision=precision, keeps_norms=False)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
def test_every_size_of_batch_has_its_own_rows(tmp_path: Path, precision: Precision) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    session = opened(module, tmp_path, precision)
    tolerance = 1e-4 if precision is Precision.FP32 else 0.05

    for rows in (1, 3, 4, 5, 33, 3, 1):
        x = torch.randn(rows, 4)
        answer = session.run({"x": x.numpy()})["output"]
        assert answer.shape == (rows, 3)
        assert np.allclose(answer, module(x).detach().numpy(), atol=tolerance)
    assert session.device == "cuda:0"
    assert session.precision is precision
    session.close()


def test_the_number_of_graphs_is_bounded(tmp_path: Path) -> None:
    session = opened(nn.Linear(4, 3), tmp_path)

    for length in range(1, 2 * MOST_GRAPHS):
        for _ in range(2):
            session.run({"x": np.zeros((1 << (length % 11), 4), np.float32)})

    assert 0 < len(session._graphs) <= MOST_GRAPHS


def test_two_lanes_on_streams_of_their_own_do_not_mix_their_rows(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 3))
    session = opened(module, tmp_path, Precision.BF16)
    barrier = threading.Barrier(2)

    def work(start: float) -> bool:
        lane = session.twin()  # on the thread of the lane, which owns the stream
        x = torch.full((7, 4), start)
        expected = module(x).detach().numpy()
        barrier.wait(60)
        return all(np.allclose(lane.run({"x": x.numpy()})["output"], expected, atol=0.05) for _ in range(200))

    with ThreadPoolExecutor(2) as lanes:
        assert all(lanes.map(work, (1.0, -2.0)))


LOSE = """
import sys
from pathlib import Path
import numpy as np, torch
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.torch_graphs import open_on_gpu
from headrace_server.precision import Precision
from headrace_server.tensors import DataType, Signature, TensorSpec

ids = TensorSpec(name="x", data_type=DataType.INT64, shape=(-1, 1))
y = TensorSpec(name="output", data_type=DataType.FP32, shape=(-1, 1, 3))
session = open_on_gpu(
    Path(sys.argv[1]), Signature(inputs=(ids,), outputs=(y,)), device="cuda:0", precision=Precision.FP32,
    keeps_norms=False,
)
for index in (1, 1, 1 << 40, 1):
    try:
        session.run({"x": np.full((1, 1), index, np.int64)})
        print("answered")
    except DeviceBroken as error:
        print("broken", error.device)
"""


def test_a_kernel_that_goes_astray_is_a_broken_device_from_then_on(tmp_path: Path) -> None:
    path = save(nn.Embedding(8, 3), (torch.zeros(2, 1, dtype=torch.int64),), tmp_path, dynamic_shapes=({0: BATCH},))

    ended = subprocess.run(  # in a process of its own: it cannot use the device any more afterwards
        [sys.executable, "-c", LOSE, str(path)], capture_output=True, text=True, timeout=300, check=False
    )

    assert ended.stdout.split("\n")[:4] == ["answered", "answered", "broken cuda:0", "broken cuda:0"], ended.stderr


def test_a_batch_that_does_not_fit_is_run_in_halves_and_later_ones_are_smaller(tmp_path: Path) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :, None] * torch.ones(1 << 22, device=x.device)).mean(-1)[:, :3]

    session = InHalves(opened(Hungry(), tmp_path))
    free, _ = torch.cuda.mem_get_info()
    rows = free // (4 * 4 * (1 << 22)) * 2

    answer = session.run({"x": np.ones((rows, 4), np.float32)})["output"]

    assert np.allclose(answer, 1)
    assert session.most_rows is not None
    assert session.most_rows < rows


def test_a_row_that_does_not_fit_is_out_of_memory_and_the_next_call_is_answered(tmp_path: Path) -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :, None] * torch.ones(1 << 36, device=x.device)).mean(-1)[:, :3]

    session = opened(Huge(), tmp_path)

    with pytest.raises(DeviceOutOfMemory):
        session.run({"x": np.ones((1, 4), np.float32)})
    assert np.allclose(
        opened(nn.Linear(4, 3), tmp_path).run({"x": np.zeros((1, 4), np.float32)})["output"].shape, (1, 3)
    )


def test_the_memory_that_a_program_takes_is_missing_on_its_device(tmp_path: Path) -> None:
    before = taken_bytes("cuda:0")

    session = opened(nn.Sequential(nn.Linear(4, 1 << 22), nn.Linear(1 << 22, 3)), tmp_path)
    session.run({"x": np.zeros((1, 4), np.float32)})

    assert taken_bytes("cuda:0") - before >= (7 << 22) * 4
    assert free_device_bytes("cuda:0") > 0
    session.close()
