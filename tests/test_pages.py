import base64
import json

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import InvalidPageToken, InvalidSpec
from headrace_server.pages import DEFAULT_PAGE_SIZE, LARGEST_PAGE_SIZE, PageRequest


def walk(keys: list[str], size: int, *question: str) -> list[list[str]]:
    """Page through sorted keys as a list of the server would."""
    pages, token = [], ""
    while True:
        request = PageRequest.parse(size, token, *question)
        left = [key for key in keys if request.after is None or key > request.after][: request.size + 1]
        page = request.page(left, left)
        pages.append(page.items)
        if not (token := page.next_token):
            return pages


@given(st.lists(st.text(st.characters(codec="utf-8")), unique=True).map(sorted), st.integers(1, 5))
def test_pages_hold_everything_once_and_in_order(keys: list[str], size: int) -> None:
    pages = walk(keys, size, "filter")

    assert [key for page in pages for key in page] == keys
    assert all(len(page) == size for page in pages[:-1])
    assert len(pages) == max(1, -(-len(keys) // size))


@pytest.mark.parametrize(
    ("asked", "given"), [(0, DEFAULT_PAGE_SIZE), (1, 1), (1000, 1000), (2**31 - 1, LARGEST_PAGE_SIZE)]
)
def test_sizes_have_a_default_and_a_limit(asked: int, given: int) -> None:
    assert PageRequest.parse(asked, "").size == given


def test_a_negative_size_is_blamed_on_its_field() -> None:
    with pytest.raises(InvalidSpec, match="page_size"):
        PageRequest.parse(-1, "")


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_a_token_is_good_for_its_own_question_only(question: list[str], other: list[str]) -> None:
    token = PageRequest.parse(1, "", *question).token_after("key")

    assert PageRequest.parse(5, token, *question).after == "key"
    if question != other:
        with pytest.raises(InvalidPageToken):
            PageRequest.parse(1, token, *other)


def forged(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


QUESTION = PageRequest.parse(1, "").question


@pytest.mark.parametrize(
    "token",
    ["x", "é", "=", "AAAA", "\ud800", forged(None), forged(1), forged({}), forged("ab"), forged([QUESTION]),
     forged([QUESTION, 1]), forged([QUESTION, None]), forged([QUESTION, ["a"]]), forged([[], "a"]),
     forged([QUESTION, "a", "b"]),
     forged([QUESTION, "\ud800"]), forged([QUESTION, "a" * 10_000]),
     base64.urlsafe_b64encode(b"[" * 3000).decode(), base64.urlsafe_b64encode(b"\xff\xfe").decode()],
)  # fmt: skip
def test_a_forged_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        PageRequest.parse(1, token)


@given(st.text())
def test_no_text_does_worse_than_being_refused(token: str) -> None:
    try:
        request = PageRequest.parse(1, token)
    except InvalidPageToken:
        return
    assert token == ""
    assert request.after is None
