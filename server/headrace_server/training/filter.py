"""Reads the filter of a list of jobs: conditions joined by AND.

    filter    = condition { "AND" condition }
    condition = field "=" value
    field     = "state" | "model" | "dataset" | "labels." KEY
    value     = word | '"' { any character; \\" and \\\\ stand for " and \\ } '"'

Knows no database.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from headrace_server.errors import InvalidName, InvalidSpec, Violation
from headrace_server.names import DatasetName, ModelName
from headrace_server.training.states import JobState

LONGEST_FILTER = 4096
_TOKEN = re.compile(r'\s*(?:(?P<quoted>"(?:[^"\\]|\\["\\])*")|(?P<equals>=)|(?P<word>[^\s="\\]+))')


class FilterField(StrEnum):
    """What a condition is about."""

    STATE = "state"
    MODEL = "model"
    DATASET = "dataset"
    LABEL = "labels"


@dataclass(frozen=True, slots=True)
class Condition:
    """A field must have a value."""

    field: FilterField
    value: str
    label: str = ""
    """The key, for LABEL."""


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Read a filter; no conditions when it is empty.

    Raises InvalidSpec that blames the field "filter" and says where in it the fault is, and what would be right.
    """
    if len(text) > LONGEST_FILTER:
        raise _refusal(f"must be at most {LONGEST_FILTER} characters, is {len(text)}")
    if not text.strip():
        return ()
    tokens = list(_tokens(text))
    conditions = []
    for start in range(0, len(tokens), 4):
        conditions.append(_condition(tokens[start : start + 3]))
        _check_join(tokens[start + 3 : start + 5])
    return tuple(conditions)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int


def _tokens(text: str) -> Iterator[_Token]:
    place, end = 0, len(text.rstrip())
    while place < end:
        if not (match := _TOKEN.match(text, place, end)):
            start = place + len(text[place:]) - len(text[place:].lstrip())
            raise _refusal(f"cannot be read from character {start + 1}: {text[start : start + 20]!r}")
        kind = match.lastgroup
        assert kind is not None
        yield _Token(kind, match[kind], match.start(kind))
        place = match.end()


def _condition(tokens: list[_Token]) -> Condition:
    if [token.kind for token in tokens[:2]] != ["word", "equals"] or len(tokens) < 3 or tokens[2].kind == "equals":
        raise _refusal(f"expected `field = value` at character {tokens[0].place + 1}")
    field, value = tokens[0].text, tokens[2].text
    if tokens[2].kind == "quoted":
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if field.startswith("labels.") and len(field) > len("labels."):
        return Condition(FilterField.LABEL, value, field.removeprefix("labels."))
    match field:
        case "state":
            return Condition(FilterField.STATE, _checked_state(value))
        case "model":
            return Condition(FilterField.MODEL, _checked_model(value))
        case "dataset":
            return Condition(FilterField.DATASET, _checked_dataset(value))
    raise _refusal(f"{field!r} is not one of state, model, dataset, labels.KEY")


def _check_join(following: list[_Token]) -> None:
    if not following:
        return
    if following[0].text != "AND" or following[0].kind != "word":
        raise _refusal(f"expected AND at character {following[0].place + 1}, found {following[0].text!r}")
    if len(following) == 1:
        raise _refusal("ends with AND: a condition is missing")


def _checked_state(value: str) -> str:
    if value not in JobState.__members__:
        raise _refusal(f"{value!r} is not a state: {', '.join(JobState)}")
    return value


def _checked_model(value: str) -> str:
    try:
        name = ModelName.parse(value, "filter")
    except InvalidName as error:
        raise InvalidSpec(error.violations) from error
    if name.version is not None or name.alias is not None:
        raise _refusal(f"{value!r} is not of the form models/{{model}}")
    return value


def _checked_dataset(value: str) -> str:
    try:
        DatasetName.parse(value, "filter")
    except InvalidName as error:
        raise InvalidSpec(error.violations) from error
    return value


def _refusal(description: str) -> InvalidSpec:
    return InvalidSpec([Violation("filter", description)])
