"""Which running jobs give way to waiting ones.  Plain values in, plain values out; knows no processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Running:
    """A job that has its turn."""

    job: str
    priority: int
    is_preemptible: bool
    is_giving_way: bool
    """Whether its place will be free soon anyway."""
    created_at: datetime


def choose_victims(
    waiting: Sequence[tuple[str, int]], running: Iterable[Running], num_free: int
) -> list[tuple[str, str]]:
    """The running jobs that must give way, each with the waiting job that it gives way to.

    `waiting` are jobs with their priorities, in the order in which they will be taken; `num_free` places are free.
    Each takes a free place, or one that is about to be free, or that of the job of least priority that permits it and
    has less than the one that waits; among equals the job that was admitted last gives way.
    """
    running = list(running)
    num_coming = num_free + sum(1 for job in running if job.is_giving_way)
    candidates = sorted(
        (job for job in running if job.is_preemptible and not job.is_giving_way),
        key=lambda job: (job.priority, -job.created_at.timestamp()),
    )
    victims: list[tuple[str, str]] = []
    for victim, (name, priority) in zip(candidates, waiting[max(0, num_coming) :], strict=False):
        if victim.priority >= priority:
            break
        victims.append((victim.job, name))
    return victims
