"""Libraries that were compiled ahead of time, called through their own interface."""

import threading
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import pytest
import torch
from torch import nn

from headrace_server.inference.backends.compiled_library import CompiledLibrary, CompiledLibraryFailed
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.inference.plans.preparing import prepare
from headrace_server.models.calibration import draw_rows
from headrace_server.precision import Precision
from tests.inference.plans.programs import signature, torch_sources

PLAN = Plan(runtime=Runtime.TORCH, precision=Precision.FP32, form=Form.COMPILED)
WIDTH = 256

pytestmark = pytest.mark.timeout(600)  # compiling takes a while, and gives way to all else that the machine does


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 3))


@pytest.fixture(scope="module")
def package(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once: it takes a while."""
    folder = tmp_path_factory.mktemp("compiled")
    (source,) = torch_sources(module, folder, WIDTH).values()
    of = signature(WIDTH, 3)
    target = folder / "library.pt2"
    prepare(PLAN, source, of, draw_rows(of).inputs, target, 300)
    return target


def test_it_answers_as_the_module_does_whatever_the_number_of_rows(package: Path, module: nn.Module) -> None:
    library = CompiledLibrary(package, 1)

    for rows in (1, 2, 7, 64):
        x = torch.randn(rows, WIDTH)
        (y,) = library([x])
        assert torch.allclose(y, module(x), atol=1e-4)
    library.close()


def test_an_answer_outlives_the_library(package: Path, module: nn.Module) -> None:
    library = CompiledLibrary(package, 1)
    x = torch.randn(3, WIDTH)

    (y,) = library([x])
    library.close()

    assert torch.allclose(y, module(x), atol=1e-4)


def test_pythons_lock_is_free_while_it_runs(package: Path) -> None:
    library = CompiledLibrary(package, 1)
    x = torch.randn(100_000, WIDTH)
    has_begun, is_over = threading.Event(), threading.Event()

    def run() -> None:
        has_begun.set()
        library([x])
        is_over.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert has_begun.wait(60)
    count = 0
    while not is_over.is_set():
        count += 1
    thread.join()
    library.close()

    assert count > 1000  # with the lock held, hardly one


def test_two_threads_run_it_at_once_and_each_gets_its_own_rows(package: Path, module: nn.Module) -> None:
    library = CompiledLibrary(package, 2)
    begin = threading.Barrier(2)
    wrong: list[int] = []

    def work(number: int) -> None:
        x = torch.full((5, WIDTH), float(number))
        expected = module(x).detach()
        begin.wait(60)
        wrong.extend(number for _ in range(100) if not torch.allclose(library([x])[0], expected, atol=1e-4))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    library.close()

    assert wrong == []


def test_what_is_no_package_or_holds_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.pt2").write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    with ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("p/data/aotinductor/model/a.cpp", "")

    with pytest.raises(BadZipFile):
        CompiledLibrary(tmp_path / "noise.pt2", 1)
    with pytest.raises(CompiledLibraryFailed, match="has 0 libraries, not one"):
        CompiledLibrary(tmp_path / "empty.pt2", 1)


def test_a_library_of_another_machine_and_one_that_needs_torchs_loader_are_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("p/data/aotinductor/model/a.so", "made elsewhere")
    with ZipFile(tmp_path / "outside.pt2", "w") as archive:
        archive.writestr("p/data/aotinductor/model/a.so", "")
        archive.writestr("p/data/aotinductor/model/a.json", "{}")

    with pytest.raises(OSError, match=r"a\.so"):
        CompiledLibrary(tmp_path / "other.pt2", 1)
    with pytest.raises(CompiledLibraryFailed, match="operators that are not in the library"):
        CompiledLibrary(tmp_path / "outside.pt2", 1)
