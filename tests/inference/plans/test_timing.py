"""How long runs take on a machine that does other things too."""

import pytest
from hypothesis import given, strategies as st

from headrace_server.inference.plans.timing import LEAST_BLOCKS, MOST_BLOCKS, median_run, time_in_turns
from tests.doubles.scripted_blocks import ScriptedBlocks


def test_a_disturbed_block_does_not_decide() -> None:
    scripted = ScriptedBlocks(narrow=[5.0, 5.1, 5.05], wide=[5.2, 3.0, 3.1])

    assert time_in_turns(scripted.blocks) == {"narrow": 5.0, "wide": 3.0}
    assert scripted.order == ["narrow", "wide"] * LEAST_BLOCKS


def test_blocks_that_do_not_agree_are_timed_until_two_of_them_do() -> None:
    scripted = ScriptedBlocks(narrow=[5.0], wide=[5.2, 8.0, 6.5, 3.0, 4.0, 3.1])

    assert time_in_turns(scripted.blocks) == {"narrow": 5.0, "wide": 3.0}
    assert scripted.order == ["narrow", "wide"] * 6


def test_blocks_that_never_agree_come_to_an_end() -> None:
    scripted = ScriptedBlocks(one=[2.0**-count for count in range(MOST_BLOCKS)])

    assert time_in_turns(scripted.blocks) == {"one": 2.0 ** -(MOST_BLOCKS - 1)}
    assert len(scripted.order) == MOST_BLOCKS


hits = st.lists(st.booleans(), max_size=MOST_BLOCKS - 2)


@given(st.floats(0.001, 1), st.floats(0.001, 1), hits, hits)
def test_whatever_disturbs_all_but_two_blocks_the_figures_are_those_of_a_quiet_machine(
    narrow: float, wide: float, while_narrow: list[bool], while_wide: list[bool]
) -> None:
    def script(seconds: float, is_disturbed: list[bool]) -> list[float]:
        # Never twice by the same: that could not be told from a quiet machine.
        return [*(seconds * (2.0 ** (at + 1) if hit else 1) for at, hit in enumerate(is_disturbed)), seconds, seconds]

    scripted = ScriptedBlocks(narrow=script(narrow, while_narrow), wide=script(wide, while_wide))

    assert time_in_turns(scripted.blocks) == {"narrow": narrow, "wide": wide}
    assert len(scripted.order) <= 2 * MOST_BLOCKS


def test_a_run_that_is_hopeless_is_made_once() -> None:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1

    assert median_run(run, 0.0, most_seconds=0.0) > 0
    assert count == 2  # one to warm up


@pytest.mark.parametrize("budget_seconds", [0.0, 0.001])
def test_a_figure_is_the_median_of_at_least_three_runs(budget_seconds: float) -> None:
    runs: list[int] = []

    assert median_run(lambda: runs.append(1), budget_seconds) > 0
    assert 4 <= len(runs) <= 51
