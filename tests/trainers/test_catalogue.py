import json
import subprocess
import sys
from importlib.metadata import EntryPoint

from headrace_server.datasets.dataset import DatasetFormat, DatasetVersion
from headrace_server.errors import Violation
from headrace_server.trainers.catalogue import GROUP, Families
from headrace_server.trainers.family import Family, Parameters


class SpellingParameters(Parameters):
    letters: int = 26

    def violations(self, dataset: DatasetVersion) -> list[Violation]:
        return []


FAMILY = Family("spelling", "Spells", SpellingParameters, (DatasetFormat.CSV,), ("accuracy",), "nowhere:build")
CLASH = Family("tabular", "Another", SpellingParameters, (DatasetFormat.CSV,), ("accuracy",), "nowhere:build")
NOT_A_FAMILY = 7


def entry_point(attribute: str) -> EntryPoint:
    sys.modules.setdefault("spelling_plugin", sys.modules[__name__])
    return EntryPoint(name=attribute.lower(), value=f"spelling_plugin:{attribute}", group=GROUP)


def test_the_built_in_families_are_listed_by_name() -> None:
    families = Families(plugins=())

    assert [family.name for family in families.list()] == ["image_classification", "tabular"]
    tabular = families.get("tabular")
    assert tabular is not None
    assert not tabular.is_plugin
    assert families.get("poetry") is None


def test_an_installed_family_is_marked_as_a_plugin() -> None:
    families = Families(plugins=[entry_point("FAMILY")])

    spelling = families.get("spelling")
    assert spelling is not None
    assert spelling.is_plugin
    assert spelling.parameters is SpellingParameters


def test_a_broken_plugin_is_unavailable_and_leaves_the_others_alone() -> None:
    missing = EntryPoint(name="missing", value="no_such_module_anywhere:FAMILY", group=GROUP)

    families = Families(plugins=[missing, entry_point("NOT_A_FAMILY"), entry_point("CLASH"), entry_point("FAMILY")])

    assert [family.name for family in families.list()] == ["image_classification", "spelling", "tabular"]
    assert "ModuleNotFoundError" in families.unavailable["missing"]
    assert "not to int" in families.unavailable["not_a_family"]
    assert "already" in families.unavailable["clash"]
    tabular = families.get("tabular")
    assert tabular is not None
    assert not tabular.is_plugin


def test_a_plugin_that_exits_while_it_is_imported_does_not_end_the_server() -> None:
    class Quitter(EntryPoint):
        def load(self) -> object:
            raise SystemExit(1)

    families = Families(plugins=[Quitter(name="quitter", value="x:y", group=GROUP)])

    assert "SystemExit" in families.unavailable["quitter"]


def test_every_family_has_a_json_schema() -> None:
    for family in Families().list():
        assert json.loads(json.dumps(family.parameters.model_json_schema()))["type"] == "object"


def test_the_catalogue_does_not_import_torch() -> None:
    code = "import sys; import headrace_server.trainers.catalogue as c; c.Families(); assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
