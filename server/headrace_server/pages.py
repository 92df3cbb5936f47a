"""Pages of long lists (AIP-158): opaque tokens that remember the question and where its answer stopped."""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from headrace_server.errors import InvalidPageToken, InvalidSpec, Violation

DEFAULT_PAGE_SIZE = 50
LARGEST_PAGE_SIZE = 1000
LONGEST_TOKEN = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, and the token of the next; empty on the last page."""

    items: list[T]
    next_token: str


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page of a list is asked for."""

    size: int
    after: str | None
    """The key of the last item of the page before, as the list itself defined it; None for the first page."""
    question: str
    """A digest of everything else in the request, so that a token cannot be used for another question."""

    @classmethod
    def parse(cls, size: int, token: str, *question: str) -> "PageRequest":
        """Read the two page fields.  Raises InvalidSpec for a negative size, InvalidPageToken for a foreign token."""
        if size < 0:
            raise InvalidSpec([Violation("page_size", "must not be negative")])
        digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:16]
        after = None
        if token:
            asked, after = _read_token(token)
            if asked != digest:
                raise InvalidPageToken
        return cls(min(size or DEFAULT_PAGE_SIZE, LARGEST_PAGE_SIZE), after, digest)

    def token_after(self, key: str) -> str:
        """The token of the page that begins after the item with `key`."""
        return base64.urlsafe_b64encode(json.dumps([self.question, key]).encode()).decode("ascii")

    def page(self, items: list[T], keys: list[str]) -> Page[T]:
        """Make a page of the first `size` of `items`, of which the list should have read one more than that."""
        more = len(items) > self.size
        return Page(items[: self.size], self.token_after(keys[self.size - 1]) if more else "")


def _read_token(token: str) -> tuple[object, str]:
    if len(token) > LONGEST_TOKEN:
        raise InvalidPageToken
    try:
        asked, after = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        if not isinstance(after, str):
            raise InvalidPageToken
        after.encode()  # half a surrogate pair is a string, but no text that a database takes
    except (binascii.Error, UnicodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidPageToken from error
    return asked, after
