"""The options that the benchmarks of serving share."""

import argparse
import sys
from collections.abc import Sequence

from tests.benchmarks.serving import workloads
from tests.benchmarks.serving.servers import Side


def parser(description: str | None, *, seconds: float, rounds: int) -> argparse.ArgumentParser:
    """--models, --callers, --seconds, --rounds."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", type=lambda text: text.split(","), default=list(workloads.NAMES), metavar="A,B")
    made.add_argument("--callers", type=_numbers, default=[1, 8, 64], metavar="N,N")
    made.add_argument("--seconds", type=float, default=seconds, help="of each measurement (default: %(default)g)")
    made.add_argument("--rounds", type=int, default=rounds, help="(default: %(default)d)")
    return made


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def choose(sides: Sequence[Side], wanted: str | None) -> list[Side]:
    """Those whose names contain one of the words, in any case; all when there are none."""
    words = [word.strip().lower() for word in wanted.split(",")] if wanted else [""]
    chosen = [side for side in sides if any(word in side.name.lower() for word in words)]
    if not chosen:
        sys.exit(f"no side is called {wanted!r}; there are: {'; '.join(side.name for side in sides)}")
    return chosen
