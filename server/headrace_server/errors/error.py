"""What all of them have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with one field of a request."""

    field: str
    """The path of the field, as in the contract: `spec.tabular.target`."""
    description: str
    """What is wrong and what would be right."""


class HeadraceError(Exception):
    """A fault of the world: bad input, a missing thing, a limit.  `reason` and `metadata` are for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


def of_member(error: HeadraceError, member: str) -> HeadraceError:
    """The same error, told as that of one member of an ensemble: nothing of it is lost."""
    path = "/".join(name for name in (member, error.metadata.get("member")) if name)
    told = type(error).__new__(type(error), f"member {member!r}: {error}")
    told.__dict__.update(error.__dict__)
    told.metadata = {**error.metadata, "member": path}
    return told
