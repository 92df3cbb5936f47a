"""The C++ tests of native/, built without Python and run: one program for each part."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace_server import _native
from headrace_server.kernels import onnx_programs

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cpp"
PARTS = ("batching", "programs", "plane", "door")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs are, built if need be."""
    if not any(Path(folder, "doctest/doctest.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        pytest.skip("needs doctest (Debian: doctest-dev)")
    tools = Path(sys.executable).parent
    cmake = tools / "cmake"
    _run(
        *(cmake, "-S", ROOT / "native", "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"),
        *("-DHEADRACE_MODULE=OFF", "-DHEADRACE_TESTS=ON", "-DHEADRACE_CUDA=OFF", "-DHEADRACE_STRICT=ON"),
        "-DCMAKE_BUILD_TYPE=Debug",
    )
    _run(cmake, "--build", BUILD, "--parallel", min(2, os.cpu_count() or 1))
    return BUILD / "tests"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_keeps_what_it_promises(part: str, programs: Path) -> None:
    if part == "door" and not _native.door_built:
        pytest.skip("built without gRPC for C++")
    library = onnx_programs.library()
    if part == "programs" and library is None:
        pytest.skip("ONNX Runtime's package has no library")
    program = programs / f"headrace_tests_{part}"
    assert "Status: SUCCESS" in _run(program, HEADRACE_ONNXRUNTIME=str(library[0]) if library else "")
