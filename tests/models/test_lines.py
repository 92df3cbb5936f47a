"""What is remembered of names is never older than the last answered change, and whoever watches hears of it at once."""

from contextlib import AbstractContextManager

import pytest
from hypothesis import given, strategies as st

from headrace_server.models.lines import MOST_REMEMBERED, Change, Line, Lines

OLD, NEW = Line(1, {"champion": 1}), Line(2, {"champion": 2})


class Watcher:
    """Remembers what a watcher would see in each moment in which it is told."""

    def __init__(self, lines: Lines) -> None:
        self.seen: list[tuple[str, Line | None]] = []
        lines.watch(lambda model: self.seen.append((model, lines.look(model))))


def test_a_change_that_says_what_the_line_is_afterwards_replaces_it_in_one_step() -> None:
    lines = Lines()
    lines.remember("m", OLD, lines.moment)
    watcher = Watcher(lines)

    with lines.changing("m") as change:
        assert lines.line("m") is OLD
        change.line = NEW
        assert lines.line("m") is OLD

    assert lines.line("m") is NEW
    assert watcher.seen == [("m", NEW)]


def test_a_change_that_fails_leaves_nothing_that_may_be_wrong() -> None:
    lines = Lines()
    lines.remember("m", OLD, lines.moment)
    watcher = Watcher(lines)

    with pytest.raises(OSError, match="disk"), lines.changing("m"):
        raise OSError("disk")

    assert lines.line("m") is None
    assert watcher.seen == [("m", None)]


def test_of_two_changes_at_once_the_one_that_ends_last_may_be_the_older() -> None:
    lines = Lines()

    with lines.changing("m") as first:
        with lines.changing("m") as second:
            second.line = NEW
        assert lines.line("m") is None  # the first may come after it, or before
        first.line = OLD

    assert lines.line("m") is None


def test_a_line_that_was_read_before_a_change_is_not_kept_after_it() -> None:
    lines = Lines()
    moment = lines.moment
    with lines.changing("m") as change:
        change.line = NEW

    lines.remember("m", OLD, moment)

    assert lines.line("m") is NEW


def test_what_is_forgotten_for_want_of_room_is_told_too() -> None:
    lines = Lines()
    watcher = Watcher(lines)

    for index in range(MOST_REMEMBERED + 1):
        lines.remember(str(index), OLD, lines.moment)

    assert watcher.seen[-2:] == [(str(MOST_REMEMBERED), OLD), ("0", None)]


@given(st.lists(st.tuples(st.sampled_from("be"), st.integers(0, 3), st.booleans()), max_size=40))
def test_whatever_overlaps_nothing_older_than_an_ended_change_is_remembered(
    steps: list[tuple[str, int, bool]],
) -> None:
    """Each change takes effect, at the earliest, when it says what the line is; it may say so long before it ends."""
    lines = Lines()
    stored = Line(0, {})  # what the database holds
    open_changes: dict[int, tuple[AbstractContextManager[Change], Change]] = {}
    newest_ended = 0
    for index, (step, slot, says) in enumerate(steps, start=1):
        if step == "b" and slot not in open_changes:
            opening: AbstractContextManager[Change] = lines.changing("m")
            change = opening.__enter__()  # the end comes when the test says so
            if says:
                stored = Line(index, {})
                change.line = stored
            open_changes[slot] = (opening, change)
        elif step == "e" and slot in open_changes:
            changing, change = open_changes.pop(slot)
            changing.__exit__(None, None, None)
            line = change.line
            newest_ended = max(newest_ended, line.latest_version if line is not None else 0)
        remembered = lines.line("m")
        if remembered is not None:
            assert remembered.latest_version >= newest_ended
