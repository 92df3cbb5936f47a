"""Series of numbers drawn as small curves of braille dots, each character two dots wide and four high.

Knows no terminal and no training.
"""

from collections.abc import Sequence
from itertools import pairwise

DOTS_ACROSS, DOTS_DOWN = 2, 4
# The bit of each dot of a braille character, by column and row from the top (Unicode 16, chapter 21.1).
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800

MOST_POINTS = 2048


class Series:
    """A growing series that keeps its shape in bounded memory: when it is full, neighbours are merged in pairs."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._open: list[float] = []
        self._stride = 1
        self.latest: float | None = None

    def append(self, value: float) -> None:
        """Add the next value; anything that is not finite is left out of the curve."""
        self.latest = value
        if value - value != 0:  # NaN or infinite
            return
        self._open.append(value)
        if len(self._open) < self._stride:
            return
        self._points.append(sum(self._open) / len(self._open))
        self._open.clear()
        if len(self._points) >= MOST_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(first + second) / 2 for first, second in pairs]
            self._stride *= 2

    @property
    def points(self) -> Sequence[float]:
        """What to draw; includes values that are not merged yet."""
        return [*self._points, sum(self._open) / len(self._open)] if self._open else self._points


def draw(values: Sequence[float], width: int, height: int) -> list[str]:
    """`height` lines of `width` characters; the least value touches the bottom, the greatest the top."""
    columns = _resample(values, width * DOTS_ACROSS)
    rows = _to_rows(columns, height * DOTS_DOWN)
    cells = [[_EMPTY] * width for _ in range(height)]
    previous = rows[0] if rows else 0
    for x, row in enumerate(rows):
        # A steep slope is filled, so that the curve is one line.
        for y in _between(previous, row):
            cells[y // DOTS_DOWN][x // DOTS_ACROSS] |= _BITS[x % DOTS_ACROSS][y % DOTS_DOWN]
        previous = row
    return ["".join(map(chr, line)) for line in cells]


def _between(previous: int, row: int) -> range:
    if abs(row - previous) <= 1:
        return range(row, row + 1)
    return range(previous + 1, row + 1) if row > previous else range(row, previous)


def _resample(values: Sequence[float], count: int) -> list[float]:
    """As many values as columns: means where there are more, straight lines between where there are fewer."""
    if len(values) < 2:
        return list(values)
    if len(values) >= count:
        edges = [round(index * len(values) / count) for index in range(count + 1)]
        return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    resampled = []
    for column in range(count):
        place = column * (len(values) - 1) / (count - 1)
        left = min(int(place), len(values) - 2)
        resampled.append(values[left] + (values[left + 1] - values[left]) * (place - left))
    return resampled


def _to_rows(values: Sequence[float], count: int) -> list[int]:
    """The row of each value, from 0 at the top."""
    if not values:
        return []
    low, high = min(values), max(values)
    if high == low:
        return [count // 2] * len(values)
    return [round((high - value) / (high - low) * (count - 1)) for value in values]
