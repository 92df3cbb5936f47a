"""Environments for programs that Headrace does not depend on: made once below build/, each by itself."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
BUILD = REPOSITORY / "build" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python with a few packages, pinned."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is, or would be."""
        digest = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:8]
        return BUILD / "environments" / f"{self.name}-{digest}"

    def python(self) -> Path:
        """Its interpreter.  Makes the environment first where it is not there; minutes, and some hundred megabytes."""
        done = self.folder / ".installed"
        interpreter = self.folder / "bin" / "python"
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
            subprocess.run([interpreter, "-m", "pip", "install", "-qq", *self.packages], check=True)
            done.touch()
        return interpreter

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return next(self.folder.glob("lib/python3*/site-packages"))
