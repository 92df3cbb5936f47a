"""Where benchmarks find the house and leave what takes long to make."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
BUILD = REPOSITORY / "build" / "benchmarks"
