"""Programs that are compiled for a GPU.  Run wherever there is one, with Triton and the headers of CUDA."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace_server.inference.backends.backend import Session
from headrace_server.inference.backends.compiled_library import CompiledLibraryFailed
from headrace_server.inference.backends.halves import InHalves
from headrace_server.inference.backends.torch_graphs import GraphSession
from headrace_server.inference.plans.compiling import missing_means
from headrace_server.inference.plans.opening import PlanFiles, open_plan
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.preparing import prepare
from headrace_server.inference.plans.trying import try_plan
from headrace_server.memory import taken_bytes
from headrace_server.models.calibration import draw_rows
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from tests.inference.plans.programs import signature, torch_sources
from tests.inference.plans.test_trying import bench

PLAN = Plan(runtime=Runtime.TORCH, precision=Precision.FP32, form=Form.COMPILED, device="cuda:0")
WIDTH = 64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(missing_means(PLAN, os.environ) != "", reason=missing_means(PLAN, os.environ)),
]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 3), nn.Softmax(-1))


def compiled(module: nn.Module, folder: Path, plan: Plan = PLAN, width: int = WIDTH) -> PlanFiles:
    (source,) = torch_sources(module, folder, width).values()
    of = signature(width, 3)
    prepare(plan, source, of, draw_rows(of).inputs, folder / "library.pt2", 400)
    return PlanFiles(source, folder / "library.pt2")


def opened(files: PlanFiles, plan: Plan = PLAN, width: int = WIDTH) -> InHalves:
    session: Session = open_plan(plan, files, signature(width, 3), num_threads=1)
    assert isinstance(session, InHalves)
    return session


@pytest.fixture(scope="module")
def files(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> PlanFiles:
    """Compiled once: it takes a while."""
    return compiled(module, tmp_path_factory.mktemp("compiled"))


def answers(session: Session, x: Tensor) -> np.ndarray:
    return np.asarray(session.run({"x": x.numpy()})["output"])


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("keeps_norms", [False, True])
def test_every_size_of_batch_has_its_own_rows_recorded_or_not(
    module: nn.Module, tmp_path: Path, precision: Precision, *, keeps_norms: bool
) -> None:
    if precision is Precision.FP32 and keeps_norms:
        pytest.skip("there is no such plan")
    plan = PLAN.model_copy(update={"precision": precision, "keeps_norms": keeps_norms})
    session = opened(compiled(module, tmp_path, plan), plan)
    tolerance = 1e-4 if precision is Precision.FP32 else 0.02

    for rows in (1, 3, 4, 5, 33, 3, 1, 1500):
        x = torch.randn(rows, WIDTH)
        assert np.allclose(answers(session, x), module(x).detach().numpy(), atol=tolerance)
    assert (session.device, session.precision) == ("cuda:0", precision)
    session.close()


def test_a_size_that_comes_again_is_replayed_without_the_library(files: PlanFiles, module: nn.Module) -> None:
    session = opened(files)
    graphs = session._inner
    assert isinstance(graphs, GraphSession)
    x = torch.randn(4, WIDTH)
    for _ in range(2):
        answers(session, x)

    def refuse(_: list[Tensor]) -> Sequence[Tensor]:
        raise AssertionError("the library was called")

    graphs._call = refuse
    assert np.allclose(answers(session, -x), module(-x).detach().numpy(), atol=1e-4)
    session.close()


def test_lanes_on_streams_of_their_own_share_the_weights_and_do_not_mix_their_rows(
    files: PlanFiles, module: nn.Module
) -> None:
    session = opened(files)
    begin = threading.Barrier(2)

    def work(start: float) -> bool:
        lane = session.twin()
        x = torch.full((7, WIDTH), start)
        expected = module(x).detach().numpy()
        begin.wait(60)
        return all(np.allclose(answers(lane, x), expected, atol=1e-4) for _ in range(200))

    with ThreadPoolExecutor(2) as lanes:
        assert all(lanes.map(work, (1.0, -2.0)))


def test_a_batch_that_does_not_fit_is_run_in_halves_and_later_ones_are_smaller(tmp_path: Path) -> None:
    class Hungry(nn.Module):
        """Sorting takes memory for all of it, whatever is fused."""

        def forward(self, x: Tensor) -> Tensor:
            wide = x[:, :, None] * torch.arange(1 << 22, device=x.device)
            return wide.sort(-1).values[:, :3, 7]

    session = opened(compiled(Hungry(), tmp_path, width=4), width=4)
    free, _ = torch.cuda.mem_get_info()
    rows = free // (4 * 4 * (1 << 22))

    answer = session.run({"x": np.ones((rows, 4), np.float32)})["output"]

    assert np.allclose(answer, 7)
    assert session.most_rows is not None
    assert session.most_rows < rows


def test_a_library_that_is_closed_gives_its_weights_back(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 1 << 22), nn.ReLU(), nn.Linear(1 << 22, 3))
    files = compiled(module, tmp_path, width=4)
    before = taken_bytes("cuda:0")

    session = opened(files, width=4)
    for _ in range(2):
        session.run({"x": np.zeros((1, 4), np.float32)})
    taken = taken_bytes("cuda:0") - before
    session.close()

    assert taken >= (7 << 22) * 4
    assert taken_bytes("cuda:0") - before < taken // 2


def test_the_kernels_lie_in_the_library_which_is_all_that_is_stored(files: PlanFiles) -> None:
    assert files.prepared is not None
    with ZipFile(files.prepared) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".cubin", ".fatbin"))]


def test_a_library_that_is_damaged_is_refused(files: PlanFiles, tmp_path: Path) -> None:
    assert files.prepared is not None
    with ZipFile(files.prepared) as archive, ZipFile(tmp_path / "damaged.pt2", "w") as damaged:
        for name in archive.namelist():
            damaged.writestr(name, archive.read(name)[: -1 << 12 if name.endswith(".so") else None])

    with pytest.raises((OSError, CompiledLibraryFailed)):
        opened(PlanFiles(files.source, tmp_path / "damaged.pt2"))


def test_it_is_tried_like_any_other_plan(module: nn.Module, tmp_path: Path) -> None:
    on = bench(torch_sources(module, tmp_path, WIDTH), signature(WIDTH, 3), tmp_path)
    base = Plan(runtime=Runtime.TORCH, precision=Precision.FP32)

    first, trial = try_plan(base, on), try_plan(PLAN.model_copy(update={"precision": Precision.BF16}), on)

    assert (first.problem, trial.problem) == ("", "")
    assert trial.worst_difference().max_relative < 0.05
    assert trial.prepared is not None
    assert trial.resident_bytes > 0
    assert ArtifactFormat.TORCH_EXPORT in on.sources
