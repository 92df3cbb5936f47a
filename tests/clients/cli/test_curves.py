import math
from itertools import pairwise

from hypothesis import given, strategies as st

from headrace.cli.curves import MOST_POINTS, Series, draw

NUMBERS = st.floats(-1e9, 1e9)


def dots(lines: list[str]) -> list[tuple[int, int]]:
    """The column and row of every dot, by Unicode's own numbering of the dots of a braille character."""
    order = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    return [
        (x * 2 + order[bit][0], y * 4 + order[bit][1])
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        for bit in range(8)
        if (ord(character) - 0x2800) >> bit & 1
    ]


@given(st.lists(NUMBERS, min_size=2, max_size=300), st.integers(1, 30), st.integers(1, 6))
def test_a_curve_has_a_dot_in_every_column_and_stays_in_its_frame(values: list[float], width: int, height: int) -> None:
    lines = draw(values, width, height)

    assert [len(line) for line in lines] == [width] * height
    assert {x for x, _ in dots(lines)} == set(range(width * 2))


def test_a_rise_goes_from_the_bottom_left_to_the_top_right() -> None:
    lines = draw(list(range(100)), 10, 4)

    places = sorted(dots(lines))
    assert (places[0], places[-1]) == ((0, 15), (19, 0))
    assert all(later[1] <= earlier[1] for earlier, later in pairwise(places) if later[0] > earlier[0])


def test_a_steep_step_is_one_line() -> None:
    rows = sorted({y for _, y in dots(draw([0.0] * 50 + [1.0] * 50, 10, 4))})

    assert rows == list(range(16))


def test_nothing_draws_nothing() -> None:
    assert dots(draw([], 5, 2)) == []
    assert len(dots(draw([1.0], 5, 2))) == 1


@given(st.integers(0, 5 * MOST_POINTS))
def test_a_series_is_bounded_and_keeps_its_shape(count: int) -> None:
    series = Series()
    for index in range(count):
        series.append(float(index))

    points = series.points
    assert len(points) <= MOST_POINTS
    assert list(points) == sorted(points)
    assert series.latest == (count - 1 if count else None)
    if count:
        assert math.isclose(points[0], 0, abs_tol=8)


def test_what_is_not_finite_is_not_drawn() -> None:
    series = Series()
    for value in (1.0, math.nan, math.inf, 2.0):
        series.append(value)

    assert list(series.points) == [1.0, 2.0]
