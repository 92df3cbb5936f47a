"""Finds the commands and the links in the project's documents."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md", "clients/*/README.md", "tests/benchmarks/*.md")
    for path in ROOT.glob(pattern)
)

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a document, its continuation lines joined."""

    document: Path
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {self.text}"


def commands(document: Path) -> list[Command]:
    """The commands of every `sh` block, in order, without comments."""
    found = []
    for language, body in _FENCE.findall(document.read_text(encoding="utf-8")):
        if language == "sh":
            lines = re.sub(r"\\\n\s*", "", body).splitlines()
            stripped = [re.sub(r"\s+# .*$", "", line).strip() for line in lines]
            found += [Command(document, line) for line in stripped if line and not line.startswith("#")]
    return found


def links(document: Path) -> list[Path]:
    """Where the relative links of a document point."""
    return [(document.parent / target).resolve() for target in _LINK.findall(document.read_text(encoding="utf-8"))]
