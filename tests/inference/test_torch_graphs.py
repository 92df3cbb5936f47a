"""Programs on a GPU.  Run wherever there is one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.torch_graphs import MOST_GRAPHS, GraphSession, open_on_gpu
from headrace_server.memory import free_device_bytes, taken_bytes
from headrace_server.precision import Precision
from headrace_server.tensors import Signature
from tests.inference.plans.programs import signature, torch_sources

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

    for exponent in range(11):
        session.run({"x": np.zeros((1 << exponent, 4), np.float32)})

    assert len(session._graphs) <= MOST_GRAPHS


def test_a_batch_that_does_not_fit_is_run_in_halves_and_later_ones_are_smaller(tmp_path: Path) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :, None] * torch.ones(1 << 22, device=x.device)).mean(-1)[:, :3]

    session = opened(Hungry(), tmp_path)
    free, _ = torch.cuda.mem_get_info()
    rows = free // (4 * 4 * (1 << 22)) * 2

    answer = session.run({"x": np.ones((rows, 4), np.float32)})["output"]

    assert np.allclose(answer, 1)
    assert session._most_rows < rows


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
