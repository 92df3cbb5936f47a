"""How much memory is left, as measured."""

from hypothesis import given, strategies as st

from headrace_server.memory import RESERVE_BYTES, Ledger, give_back_freed_memory

MIB = 1 << 20


class Machine:
    """Memory that the test fills."""

    def __init__(self, available: int = 1000 * MIB) -> None:
        self.available = available
        self.resident = 100 * MIB

    def ledger(self, limit_bytes: int = 0) -> Ledger:
        return Ledger(limit_bytes, lambda: self.available, lambda: self.resident)


def test_what_the_machine_has_left_is_free_but_for_a_reserve() -> None:
    machine = Machine()

    assert machine.ledger().free_bytes(0, 0) == 1000 * MIB - RESERVE_BYTES
    assert machine.ledger().free_bytes(500 * MIB, 0) == 1000 * MIB - RESERVE_BYTES  # they are not available any more
    assert machine.ledger().free_bytes(0, 100 * MIB) == 900 * MIB - RESERVE_BYTES  # these will not be


def test_what_other_processes_take_is_not_free() -> None:
    machine = Machine()
    ledger = machine.ledger(limit_bytes=300 * MIB)
    before = ledger.free_bytes(0, 0)

    machine.available = 10 * MIB  # a training job has begun

    assert (before, ledger.free_bytes(0, 0)) == (300 * MIB, 0)


def test_a_limit_counts_what_models_hold_and_what_they_are_about_to() -> None:
    assert Machine().ledger(300 * MIB).free_bytes(100 * MIB, 50 * MIB) == 150 * MIB


def test_what_a_load_takes_is_what_the_process_grows_by() -> None:
    machine = Machine()
    ledger = machine.ledger()

    growth = ledger.begin()
    machine.resident += 40 * MIB

    assert ledger.end(growth) == 40 * MIB


def test_loads_at_the_same_time_share_the_growth() -> None:
    machine = Machine()
    ledger = machine.ledger()

    first, second = ledger.begin(), ledger.begin()
    machine.resident += 40 * MIB
    taken = ledger.end(first), ledger.end(second)
    alone = ledger.begin()

    assert taken == (20 * MIB, 20 * MIB)
    assert ledger.end(alone) == 0


def test_a_process_that_shrinks_has_taken_nothing() -> None:
    machine = Machine()
    ledger = machine.ledger()
    growth = ledger.begin()
    machine.resident -= 50 * MIB

    assert ledger.end(growth) == 0


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_there_is_never_less_than_nothing(available: int, limit: int, held: int, expected: int) -> None:
    assert 0 <= Machine(available).ledger(limit).free_bytes(held, expected) <= available


def test_freed_memory_can_be_given_back_at_any_time() -> None:
    give_back_freed_memory()
