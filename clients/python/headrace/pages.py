"""Lists that come in pages, collected."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

LARGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """One page of a list."""

    items: Iterable[ItemT]
    next_token: str
    """Empty on the last page."""


async def collect(ask: Callable[[int, str], Awaitable[Page[ItemT]]], limit: int | None) -> list[ItemT]:
    """The items of `ask(page size, page token)` page by page: the first `limit`, or all when None."""
    if limit is not None and limit < 0:
        raise ValueError("limit must not be negative")
    items: list[ItemT] = []
    token = ""
    while limit is None or len(items) < limit:
        wanted = LARGEST_PAGE if limit is None else min(LARGEST_PAGE, limit - len(items))
        page = await ask(wanted, token)
        items.extend(page.items)
        token = page.next_token
        if not token:
            break
    return items if limit is None else items[:limit]
