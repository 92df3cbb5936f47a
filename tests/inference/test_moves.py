"""What to load or unload next, whatever is in memory."""

from dataclasses import replace

from hypothesis import given, strategies as st

from headrace_server.inference.moves import Held, Load, Refuse, Unload, Wait, next_move

things = st.builds(Held, st.integers(0, 50), st.booleans(), st.booleans(), st.booleans(), st.just(False))
memories = st.lists(things, max_size=8)
amounts = st.integers(0, 100)
limits = st.integers(1, 8)


def test_what_fits_is_loaded() -> None:
    assert next_move([Held(5)], wanted_bytes=10, free_bytes=10, max_held=2) == Load()


def test_the_least_recently_used_idle_one_leaves_first() -> None:
    held = [Held(5, is_in_use=True), Held(5, is_pinned=True), Held(5), Held(5)]

    assert next_move(held, 10, 5, 9) == Unload(2)


def test_one_in_use_leaves_only_when_none_is_idle() -> None:
    assert next_move([Held(5, is_pinned=True), Held(5, is_in_use=True)], 10, 5, 9) == Unload(1)


def test_what_leaves_already_is_waited_for() -> None:
    assert next_move([Held(5, is_leaving=True), Held(5)], 10, 5, 9) == Wait()


def test_what_is_being_loaded_may_leave_later() -> None:
    assert next_move([Held(5, is_loading=True)], 5, 5, 1) == Wait()


def test_what_never_fits_is_refused_with_what_is_missing() -> None:
    held = [Held(30), Held(50, is_pinned=True)]

    assert next_move(held, wanted_bytes=60, free_bytes=20, max_held=9) == Refuse(10)
    assert next_move([Held(1, is_pinned=True)], 0, 100, max_held=1) == Refuse(0)


@given(memories, amounts, amounts, limits)
def test_pinned_ones_stay_and_nothing_leaves_twice(held: list[Held], wanted: int, free: int, limit: int) -> None:
    match next_move(held, wanted, free, limit):
        case Unload(index):
            assert not held[index].is_pinned
            assert not held[index].is_leaving
            idle = [one for one in held if not (one.is_pinned or one.is_leaving or one.is_in_use)]
            assert not (held[index].is_in_use and idle)
        case Load():
            assert wanted <= free
            assert len(held) < limit


@given(memories, amounts, amounts, limits)
def test_every_way_ends_in_loading_or_in_a_refusal_and_only_what_must_leaves(
    held: list[Held], wanted: int, free: int, limit: int
) -> None:
    most = len(held) + 1
    for _ in range(2 * most + 1):
        match next_move(held, wanted, free, limit):
            case Load():
                return
            case Refuse(missing):
                stays = [one for one in held if one.is_pinned and not one.is_leaving]
                goes = sum(one.nbytes for one in held) - sum(one.nbytes for one in stays)
                assert free + goes < wanted or len(stays) >= limit
                assert missing == max(wanted - free - goes, 0)
                return
            case Unload(index):
                held = [*held[:index], replace(held[index], is_leaving=True), *held[index + 1 :]]
            case Wait():
                gone = next(one for one in held if one.is_leaving)
                held, free = [one for one in held if one is not gone], free + gone.nbytes
    raise AssertionError("it goes on for ever")


@given(memories, amounts, amounts, limits, st.integers(0, 50))
def test_more_room_never_makes_anything_leave_that_stayed_before(
    held: list[Held], wanted: int, free: int, limit: int, more: int
) -> None:
    if next_move(held, wanted, free, limit) == Load():
        assert next_move(held, wanted, free + more, limit) == Load()
