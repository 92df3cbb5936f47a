"""What to load or unload next: one pure function of what is in memory, what is wanted, and what there is room for.

It decides one step at a time, so that every step is taken with what is true by then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Held:
    """One thing that takes memory."""

    nbytes: int
    """As measured when it was loaded."""
    is_pinned: bool = False
    """Whether its owner said that it stays."""
    is_in_use: bool = False
    """Whether calls use it: it would leave only when they are answered."""
    is_leaving: bool = False
    """Whether it was told to leave already; what is being loaded cannot be, and is not."""
    is_loading: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """There is room: load it now."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Tell this one to leave."""

    index: int
    """In the sequence that was given."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What leaves or loads already decides; look again when it has."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """There will be no room, whatever leaves."""

    missing_bytes: int
    """How much more would be needed; 0 when it is the number of versions that is at its limit."""


Move: TypeAlias = Load | Unload | Wait | Refuse


def next_move(held: Sequence[Held], wanted_bytes: int, free_bytes: int, max_held: int) -> Move:
    """The next step towards loading something of `wanted_bytes`.

    `held` lies in the order of use, least recently used first; `free_bytes` is what the device has left beside it;
    at most `max_held` may be held at the same time.  Idle ones leave before those in use, pinned ones never.
    """
    if _fits(len(held), free_bytes, wanted_bytes, max_held):
        return Load()
    leaving = [one for one in held if one.is_leaving]
    if _fits(len(held) - len(leaving), free_bytes + _bytes(leaving), wanted_bytes, max_held):
        return Wait()
    may_leave = [index for index, one in enumerate(held) if not (one.is_pinned or one.is_leaving or one.is_loading)]
    loading = [one for one in held if one.is_loading and not one.is_pinned]
    going = [*leaving, *(held[index] for index in may_leave)]
    if not _fits(len(held) - len(going), free_bytes + _bytes(going), wanted_bytes, max_held):
        everything = [*going, *loading]
        if loading and _fits(len(held) - len(everything), free_bytes + _bytes(everything), wanted_bytes, max_held):
            return Wait()  # what is being loaded may leave when it is
        return Refuse(max(wanted_bytes - free_bytes - _bytes(everything), 0))
    return Unload(min(may_leave, key=lambda index: (held[index].is_in_use, index)))


def _fits(num_held: int, free_bytes: int, wanted_bytes: int, max_held: int) -> bool:
    return num_held < max_held and wanted_bytes <= free_bytes


def _bytes(some: Sequence[Held]) -> int:
    return sum(one.nbytes for one in some)
