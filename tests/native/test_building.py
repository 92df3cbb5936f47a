"""Whether the native door is built: as it is asked for, and otherwise where gRPC for C++ is found."""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace_server import _native

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
WITHOUT_GRPC = ("-DGRPC_CPP_INCLUDE=", "-DGRPC_CPP_LIBRARY=", "-DGRPC_LIBRARY=")


def configure(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """What CMake would build, without building it."""
    return subprocess.run(
        [
            *(TOOLS / "cmake", "-S", ROOT / "native", "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}",
            *("-DHEADRACE_MODULE=OFF", "-DHEADRACE_CUDA=OFF", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_door_is_built_where_none_is_asked_for(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHEADRACE_DOOR=OFF")

    assert done.returncode == 0, done.stderr
    assert "native door OFF" in done.stdout


@pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")
def test_a_door_is_built_where_it_can_be(tmp_path: Path) -> None:
    done = configure(tmp_path)

    assert done.returncode == 0, done.stderr
    assert "native door ON" in done.stdout


def test_a_machine_without_grpc_for_c_plus_plus_gets_everything_else(tmp_path: Path) -> None:
    done = configure(tmp_path, *WITHOUT_GRPC)

    assert done.returncode == 0, done.stderr
    assert "native door OFF" in done.stdout


def test_a_door_that_is_asked_for_and_cannot_be_built_is_an_error(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHEADRACE_DOOR=ON", *WITHOUT_GRPC)

    assert done.returncode != 0
    assert "libgrpc++-dev" in done.stderr
