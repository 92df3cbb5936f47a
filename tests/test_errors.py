from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import get_type_hints

import pytest

from headrace.error.v1.error_reason_pb2 import ErrorReason
from headrace_server import errors
from headrace_server.errors import HeadraceError, Invalid, Overloaded, TooLarge, Unavailable, Violation

SAMPLES: dict[object, object] = {
    int: 7,
    float: 0.5,
    str: "text",
    timedelta: timedelta(seconds=3),
    object: "value",
    Sequence[int]: [7],
}


def leaves(kind: type[HeadraceError] = HeadraceError) -> Iterator[type[HeadraceError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for inner in below:
        yield from leaves(inner)


def sample(kind: type[HeadraceError]) -> HeadraceError:
    arguments: dict[str, object] = {}
    for name, hint in get_type_hints(kind.__init__).items():
        if name in ("return", "metadata"):
            continue
        arguments[name] = [Violation("field", "is wrong")] if name == "violations" else SAMPLES.get(hint, 7)
    return kind(**arguments)  # type: ignore[arg-type]


KINDS = [kind for kind in leaves() if kind.__module__.startswith(f"{errors.__name__}.")]


def test_there_are_as_many_as_the_tree_says() -> None:
    assert len(KINDS) >= 28


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_something_to_people_and_to_programs(kind: type[HeadraceError]) -> None:
    error = sample(kind)

    assert str(error)
    assert all(isinstance(value, str) for value in error.metadata.values())
    assert f"ERROR_REASON_{error.reason}" in ErrorReason.keys()  # noqa: SIM118 - not a dictionary
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_carry_what_their_family_promises(kind: type[HeadraceError]) -> None:
    error = sample(kind)

    if isinstance(error, Invalid):
        assert error.violations
    if isinstance(error, Overloaded | Unavailable):
        assert error.retry_after > timedelta()


def test_no_two_kinds_share_a_reason() -> None:
    reasons = [kind.reason for kind in KINDS if kind is not errors.CannotStart]

    assert sorted(reasons) == sorted(set(reasons))


def test_one_of_many_violations_is_in_the_message_and_all_are_in_the_error() -> None:
    found = [Violation("a", "is wrong"), Violation("b", "too")]

    error = errors.InvalidSpec(found)

    assert str(error) == "a: is wrong (and 1 more)"
    assert error.violations == tuple(found)
    assert error.metadata == {"violations": "2"}


def test_a_limit_is_named_with_the_setting_that_changes_it() -> None:
    error = TooLarge("dataset", 1_000_000, "datasets.max_upload_bytes")

    assert (
        str(error) == "the dataset is larger than 1,000,000 bytes, the limit of the setting datasets.max_upload_bytes"
    )
    assert error.metadata == {"what": "dataset", "limit_bytes": "1000000"}
