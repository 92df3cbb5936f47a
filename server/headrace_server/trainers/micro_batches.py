"""Divides the rows of a step among ranks, and each rank's rows into parts that are computed one after another.

Knows no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from headrace_server.trainers.ranks import Place

_ALONE = Place()


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that one forward and one backward pass take, as places among the rank's own rows of the step."""

    begin: int
    end: int
    share: float
    """Which share of the step's rows it holds; 0 where a rank only keeps the others company."""


def rows_of_rank(num_rows: int, place: Place = _ALONE) -> slice:
    """Which of a step's rows a rank needs; never none, because it has to keep the others company."""
    own = place.rows(num_rows)
    return own if own.start < own.stop else slice(0, min(2, num_rows))


@lru_cache(maxsize=64)  # nearly all steps of a training are alike
def parts_of_step(num_rows: int, micro_rows: int, place: Place = _ALONE, done: int = 0) -> Sequence[Part]:
    """The parts of a rank, of at most `micro_rows` rows, but for those of the first `done` ones.

    All ranks have the same number of parts, since they meet in each of them, and in each some rank has rows of its own.
    A row that would be left alone joins the part before, because there are no statistics of one row; only a size of 1
    leaves it alone.
    """
    own = place.rows(num_rows)
    num_own = own.stop - own.start
    parts = []
    begin = done
    while begin < num_own:
        end = min(begin + micro_rows, num_own)
        if micro_rows > 1 and num_own - end == 1:
            end = num_own
        parts.append(Part(begin, end, (end - begin) / num_rows))
        begin = end
    if place.size > 1:
        fewest, most = num_rows // place.size, -(-num_rows // place.size)
        missing = max(_num_parts(fewest, micro_rows), _num_parts(most, micro_rows)) - len(parts)
        company = rows_of_rank(num_rows, place)
        parts += [Part(0, min(2, company.stop - company.start), 0.0)] * missing
    return tuple(parts)


def _num_parts(num_own: int, micro_rows: int) -> int:
    """How many parts a rank has that hold so many of its rows."""
    leaves_one = micro_rows > 1 and num_own > 1 and num_own % micro_rows == 1
    return -(-num_own // micro_rows) - leaves_one
