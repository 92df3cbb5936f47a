"""Names that strangers gave to columns, arrays and files, and what libraries say about their contents."""

import unicodedata

LONGEST_NAME = 1024


def is_clean(name: str) -> bool:
    """Whether a name is short enough to keep, and free of what no terminal, log or message can carry."""
    return len(name) <= LONGEST_NAME and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def shown(name: str) -> str:
    """A name as it may appear in a message, whatever it holds."""
    return ascii(f"{name[:200]}…") if len(name) > 200 else repr(name)


def words(error: Exception) -> str:
    """What a library said, on one line and without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:500])
