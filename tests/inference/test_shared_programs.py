"""Programs of one file that several lanes have."""

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

from headrace_server import _native
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from headrace_server.inference.backends.shared_programs import SharedPrograms
from headrace_server.models.onnx_signature import read_signature
from headrace_server.storage.file_state import FileState
from tests.doubles.onnx_models import scale


def opened(path: Path, num_threads: int = 1) -> OnnxRuntimeSession:
    session = OnnxRuntimeBackend(num_threads).open(path, read_signature(path, may_have_companions=False))
    assert isinstance(session, OnnxRuntimeSession)
    return session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(scale(2), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_lanes_of_one_file_have_one_program_until_the_last_lets_go(path: Path) -> None:
    first, second = opened(path), opened(path)
    assert first.program is second.program
    assert first.program is not None
    program = weakref.ref(first.program)

    first.close()
    answer = second.run({"x": np.ones((1, 2), np.float32)})
    assert answer["y"].tolist() == [[2, 2]]
    second.close()
    gc.collect()

    assert program() is None


def test_a_file_that_has_changed_is_another_program(path: Path) -> None:
    before = opened(path)
    onnx.save(scale(30.5), path)
    after = opened(path)

    assert before.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]
    assert after.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[30.5, 30.5]]


def test_runs_with_helpers_have_a_program_of_their_own(path: Path) -> None:
    first, second = opened(path, num_threads=2), opened(path, num_threads=2)

    assert first.program is not second.program


def test_of_many_who_want_a_file_at_once_one_reads_it_and_after_a_failure_the_next(path: Path) -> None:
    shared, file = SharedPrograms(), FileState.of(path)
    program = opened(path).program
    assert program is not None
    num_built, all_want = [], threading.Barrier(8)

    def build() -> _native.OnnxProgram:
        num_built.append(1)
        if len(num_built) == 1:
            raise RuntimeError("the first one cannot")
        return program

    found: list[object] = []

    def want() -> None:
        all_want.wait(60)
        try:
            found.append(shared.open(file, build))
        except RuntimeError as error:
            found.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(num_built) == 2
    assert found.count("the first one cannot") == 1
    assert [each for each in found if each is program] == [program] * 7
