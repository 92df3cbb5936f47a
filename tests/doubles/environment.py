"""Pythons for programs that Headrace does not depend on, or whose packages do not go with its own."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
SECONDS_TO_INSTALL = 900


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python with a few packages, pinned."""

    name: str
    packages: tuple[str, ...]
    root: Path = BUILD / "environments"

    @property
    def folder(self) -> Path:
        """Where it is, or would be."""
        digest = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:8]
        return self.root / f"{self.name}-{digest}"

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    def python(self) -> Path:
        """Its interpreter.  Makes the environment first where it is not there, or not whole: up to some minutes."""
        interpreter, mark = self.folder / "bin" / "python", self.folder / ".installed"
        if not mark.exists():
            _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(self.folder))
            _uv("pip", "install", "--quiet", "--python", str(interpreter), *self.packages)
            mark.touch()
        return interpreter


def _uv(*arguments: str) -> None:
    variables = {**os.environ}
    if "PIP_FIND_LINKS" in variables:  # as in the Makefile
        variables.setdefault("UV_FIND_LINKS", variables["PIP_FIND_LINKS"])
    done = subprocess.run(
        [Path(sys.executable).with_name("uv"), *arguments],
        env=variables, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"uv {' '.join(arguments[:2])}: {done.stderr}"
