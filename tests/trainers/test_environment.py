import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.trainers.environment import digest_of_code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("strange")]:
        del sys.modules[name]


def test_a_familys_code_is_told_by_its_content_wherever_it_lies(place: Path) -> None:
    package = place / "strange"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "family.py").write_text("def make(): ...\n")
    (package / "network.py").write_text("WIDTH = 3\n")
    before = digest_of_code("strange.family:make")

    (package / "network.py").write_text("WIDTH = 4\n")
    after = digest_of_code("strange.family:make")
    (package / "network.py").write_text("WIDTH = 3\n")

    assert before.startswith("sha256:")
    assert after != before
    assert digest_of_code("strange.family:make") == before


def test_a_module_in_no_package_is_told_by_itself(place: Path) -> None:
    (place / "strange_alone.py").write_text("def make(): ...\n")
    before = digest_of_code("strange_alone:make")

    (place / "another.py").write_text("")

    assert digest_of_code("strange_alone:make") == before


def test_code_that_cannot_be_found_is_unknown() -> None:
    assert digest_of_code("strange_nowhere:make") == "unknown"
