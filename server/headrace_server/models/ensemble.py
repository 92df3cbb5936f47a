"""What an ensemble is made of.  Knows nothing of what its members are, or of how they are run.

A mean and a vote give every member the same inputs; a chain says for each input of each member where it comes from.
"""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace_server.errors import Violation
from headrace_server.names import ID_RULE, is_id

MOST_MEMBERS = 32
DEEPEST = 4
"""Ensembles in ensembles, the outermost included."""
MOST_WIRES = 4096


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Member(_Part):
    """One model of an ensemble."""

    name: str
    model: str
    """A version, or a name that means, in each call, what it means then."""
    weight: float = 1.0


class MemberOutput(_Part):
    """An output of a member."""

    member: str
    output: str


class ChainInput(_Part):
    """Where an input of a member comes from: an input of the ensemble, or an output of another member."""

    member: str
    input: str
    source: str | MemberOutput


class ChainOutput(_Part):
    """An output of the ensemble."""

    name: str
    source: MemberOutput


class Mean(_Part):
    """Averages what is floating-point."""

    kind: Literal["mean"] = "mean"


class Vote(_Part):
    """Takes what most say, of what is not."""

    kind: Literal["vote"] = "vote"


class Chain(_Part):
    """Feeds members with outputs of others."""

    kind: Literal["chain"] = "chain"
    inputs: tuple[ChainInput, ...]
    outputs: tuple[ChainOutput, ...]


class Ensemble(_Part):
    """Several models that answer as one."""

    members: tuple[Member, ...]
    combination: Annotated[Mean | Vote | Chain, Field(discriminator="kind")]

    def member(self, name: str) -> Member:
        """The member of that name, which there is."""
        return next(member for member in self.members if member.name == name)


class Misfit(Exception):
    """An ensemble does not fit together; `violations` says all that is wrong."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(violations[0].description)
        self.violations = tuple(violations)


def check_form(ensemble: Ensemble) -> list[Violation]:
    """Everything that is wrong with an ensemble whatever its members are."""
    found: list[Violation] = []
    if not 1 <= len(ensemble.members) <= MOST_MEMBERS:
        found.append(Violation("members", f"must be 1 to {MOST_MEMBERS}, not {len(ensemble.members)}"))
    names: set[str] = set()
    for index, member in enumerate(ensemble.members):
        field = f"members[{index}]"
        if not is_id(member.name):
            found.append(Violation(f"{field}.name", f"{member.name!r} is not made of {ID_RULE}"))
        elif member.name in names:
            found.append(Violation(f"{field}.name", f"{member.name!r} is the name of two members"))
        names.add(member.name)
        if not member.weight > 0:
            found.append(Violation(f"{field}.weight", f"is {member.weight:g}, must be greater than 0"))
        if isinstance(ensemble.combination, Chain) and member.weight != 1:
            found.append(Violation(f"{field}.weight", "counts in a mean or a vote, not in a chain"))
    if isinstance(ensemble.combination, Chain):
        num_wires = len(ensemble.combination.inputs) + len(ensemble.combination.outputs)
        if num_wires > MOST_WIRES:
            found.append(Violation("chain", f"has {num_wires} inputs and outputs, at most {MOST_WIRES} are allowed"))
    return found


def order_of(ensemble: Ensemble) -> list[str]:
    """The members of a chain, each after those whose outputs it takes.  Raises Misfit for a circle."""
    assert isinstance(ensemble.combination, Chain)
    needs: dict[str, set[str]] = {member.name: set() for member in ensemble.members}
    for wire in ensemble.combination.inputs:
        if isinstance(wire.source, MemberOutput):
            needs[wire.member].add(wire.source.member)
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise Misfit([Violation("chain.inputs", f"members feed each other in a circle: {circle}")]) from None
