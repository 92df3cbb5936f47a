"""Every name that means a version which is ready, and no other."""

from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from headrace_server.inference.resident import Resident
from headrace_server.inference.routes import Route, Routes
from headrace_server.models.lines import Line
from headrace_server.models.serving import ResponseCaching, ServingOptions
from headrace_server.models.version import ModelVersion
from headrace_server.tensors import DataType, Signature, TensorSpec

FLOATS = Signature(
    inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", data_type=DataType.FP32, shape=(-1, 2)),),
)
TEXTS = Signature(inputs=(TensorSpec(name="x", data_type=DataType.STRING, shape=(-1,)),), outputs=FLOATS.outputs)


def resident(number: int, model: str = "m", signature: Signature = FLOATS) -> Resident:
    version = ModelVersion(
        model=model, version=number, signature=signature, artifacts=(), created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    return cast("Resident", SimpleNamespace(version=version))


class Board:
    """What a door would answer by."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.routes = Routes(self.lines.get)
        self.names: dict[str, int] = {}
        self.shown: dict[str, list[int]] = {}
        self.routes.watch(self._turn)

    def _turn(self, routes: Sequence[Route]) -> None:
        self.names = {str(route.name): route.resident.version.version for route in routes}
        self.shown = {str(route.name): [*route.numbers] for route in routes}

    def point(self, latest: int, **aliases: Any) -> None:
        self.lines["m"] = Line(latest, aliases)
        self.routes.line_changed("m")


def test_a_ready_version_has_its_number_and_every_name_that_points_to_it() -> None:
    board = Board()
    board.point(3, champion=2, rival=1)

    board.routes.add(resident(2))
    board.routes.add(resident(3))

    assert board.names == {
        "models/m/versions/2": 2,
        "models/m/versions/3": 3,
        "models/m": 3,
        "models/m@champion": 2,
    }
    assert board.shown["models/m"] == [1, 2, 3]
    assert board.shown["models/m/versions/2"] == [2]


def test_names_follow_where_they_point() -> None:
    board = Board()
    board.routes.add(resident(1))
    board.routes.add(resident(2))
    board.point(2, champion=1)
    assert board.names["models/m@champion"] == 1

    board.point(2, champion=2, default=1)
    assert board.names["models/m@champion"] == 2
    assert board.names["models/m"] == 1

    del board.lines["m"]
    board.routes.line_changed("m")
    assert board.names == {"models/m/versions/1": 1, "models/m/versions/2": 2}


def test_a_version_that_leaves_takes_its_names_with_it() -> None:
    board = Board()
    board.point(1)
    first, again = resident(1), resident(1)
    board.routes.add(first)

    board.routes.remove(first)
    assert board.names == {}
    board.routes.add(again)
    board.routes.remove(first)  # too late: another has come in its place
    assert board.names == {"models/m": 1, "models/m/versions/1": 1}


def test_what_cannot_be_answered_from_bytes_has_no_route() -> None:
    board = Board()

    board.routes.add(resident(1, signature=TEXTS))
    board.routes.add(resident(1, signature=Signature(inputs=(), outputs=FLOATS.outputs)))

    assert board.names == {}


def test_a_model_with_a_response_cache_has_no_route_until_its_owner_turns_it_off() -> None:
    board = Board()
    board.point(1)
    board.routes.add(resident(1))
    assert set(board.names) == {"models/m", "models/m/versions/1"}

    board.lines["m"] = Line(1, {}, ServingOptions(cache=ResponseCaching(is_enabled=True)))
    board.routes.line_changed("m")
    assert board.names == {}

    board.point(1)
    assert set(board.names) == {"models/m", "models/m/versions/1"}
