from headrace_server.training.lease import Lease
from tests.doubles.hand_clock import HandClock


def look(lease: Lease, clock: HandClock, seconds: float) -> float:
    """Let time pass, looking as often as one should."""
    for _ in range(round(seconds / lease.tick_seconds)):
        clock.advance(lease.tick_seconds)
        lease.seconds_left()
    return lease.seconds_left()


def test_a_lease_runs_out_without_a_sign_of_life() -> None:
    clock = HandClock()
    lease = Lease(4, 60, clock)

    assert look(lease, clock, 59) > 0
    lease.renew()
    assert look(lease, clock, 3.5) > 0
    assert look(lease, clock, 0.5) <= 0


def test_every_sign_of_life_begins_it_anew() -> None:
    clock = HandClock()
    lease = Lease(4, 4, clock)
    for _ in range(10):
        assert look(lease, clock, 3) > 0
        lease.renew()


def test_a_pause_of_this_process_is_not_held_against_the_worker() -> None:
    clock = HandClock()
    lease = Lease(4, 4, clock)
    look(lease, clock, 2)

    clock.advance(3600)

    assert 0 < lease.seconds_left() <= 2
    assert look(lease, clock, 2) <= 0
