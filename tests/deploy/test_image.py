"""What the recipe of the image takes from the repository is there, and what it takes is let in."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
LET_IN = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
SOURCES = [
    source for words in re.findall(r"^COPY (?!--from)(.+)$", RECIPE, re.MULTILINE) for source in words.split()[:-1]
]


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_copied_exists_and_is_let_in(source: str) -> None:
    assert (ROOT / source).exists()
    assert source in LET_IN


def test_nothing_else_is_let_in() -> None:
    assert set(SOURCES) == LET_IN


def test_the_server_runs_without_rights_and_hears_that_it_shall_end() -> None:
    last = RECIPE.rpartition("\nFROM ")[2]

    assert re.search(r"^USER \d+$", last, re.MULTILINE)
    assert "g++" not in last
    assert re.search(r'^ENTRYPOINT \["headrace-server"\]$', last, re.MULTILINE)  # not through a shell
