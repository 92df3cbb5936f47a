"""The programs in C++ that benchmarks of serving use, built on demand into build/benchmarks/tools."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.serving.places import BUILD, REPOSITORY

SOURCES = REPOSITORY / "tests" / "benchmarks" / "load"


class CannotBuild(Exception):
    """CMake, a compiler or gRPC for C++ is missing; the message says which."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Where they are."""

    load: Path
    follow: Path
    echo: Path
    quantiles: Path


def tools() -> Tools:
    """Build what is not built yet: half a minute the first time, a tenth of a second afterwards.

    Raises CannotBuild where something for it is missing, subprocess.CalledProcessError when the code does not compile.
    """
    missing = [program for program in ("cmake", "c++", "pkg-config") if shutil.which(program) is None]
    if not missing and subprocess.run(["pkg-config", "--exists", "grpc++"], check=False).returncode:
        missing = ["gRPC for C++ (Debian: libgrpc++-dev)"]
    if missing:
        raise CannotBuild(f"the load generator needs {', '.join(missing)}")
    folder = BUILD / "tools"
    if not (folder / "CMakeCache.txt").exists():
        subprocess.run(["cmake", "-S", SOURCES, "-B", folder], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return Tools(folder / "load", folder / "follow", folder / "echo", folder / "quantiles")
