import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import InvalidSpec
from headrace_server.training.filter import Condition, FilterField, parse_filter


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("   ", []),
        ("state = RUNNING", [Condition(FilterField.STATE, "RUNNING")]),
        ("state=RUNNING", [Condition(FilterField.STATE, "RUNNING")]),
        (
            ' model = models/digits AND dataset = "datasets/digits" ',
            [Condition(FilterField.MODEL, "models/digits"), Condition(FilterField.DATASET, "datasets/digits")],
        ),
        (
            r'labels.a.b = "two words" AND labels.c = "say \"hi\" \\ bye"',
            [Condition(FilterField.LABEL, "two words", "a.b"), Condition(FilterField.LABEL, r'say "hi" \ bye', "c")],
        ),
        ('labels.empty = ""', [Condition(FilterField.LABEL, "", "empty")]),
        ('labels.AND = "AND"', [Condition(FilterField.LABEL, "AND", "AND")]),
    ],
)
def test_filters_are_read(text: str, conditions: list[Condition]) -> None:
    assert list(parse_filter(text)) == conditions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state", "field = value"),
        ("state =", "field = value"),
        ("state = = RUNNING", "field = value"),
        ("= RUNNING", "field = value"),
        ("state = running", "not a state"),
        ("state = RUNNING AND", "ends with AND"),
        ("state = RUNNING or state = FAILED", "expected AND"),
        ('state = RUNNING "AND" state = FAILED', "expected AND"),
        ("AND state = RUNNING", "field = value"),
        ("owner = me", "not one of state, model, dataset"),
        ("labels = x", "not one of"),
        ("labels. = x", "not one of"),
        ("model = digits", "not of the form"),
        ("model = models/digits@best", "not of the form"),
        ("dataset = digits", "not of the form"),
        ('labels.a = "open', "cannot be read from character 12"),
        (r'labels.a = "bad \n"', "cannot be read"),
        ("state = RUNNING" + " " * 5000, "at most"),
    ],
)
def test_bad_filters_say_what_is_wrong_and_where(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        parse_filter(text)

    assert [violation.field for violation in refusal.value.violations] == ["filter"]
    assert words in refusal.value.violations[0].description


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_filter(text)
    except InvalidSpec:
        pass


@given(st.text(max_size=50))
def test_any_value_can_be_quoted(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')

    assert parse_filter(f'labels.key = "{quoted}"') == (Condition(FilterField.LABEL, value, "key"),)
