"""What benchmarks print is what was measured, and rounds that were disturbed are no results."""

from pathlib import Path
from xml.dom import minidom

import pytest

from tests.benchmarks.serving import curve, tables
from tests.benchmarks.serving.arguments import choose
from tests.benchmarks.serving.limits import AIO_ECHO, CPP_ECHO
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES
from tests.benchmarks.serving.rounds import Case, Measured, Results, undisturbed
from tests.benchmarks.serving.torchserve import _field, read_prediction
from tests.benchmarks.serving.workloads import Workload

OURS, THEIRS = Case("mlp", 8, "ours"), Case("mlp", 8, "theirs")


def measured(rate: float, p50: float = 1.0, others: float = 0.0) -> Measured:
    return Measured(rate, p50, 2.0, 30.0, 100.0, 0.2, others, 0)


def results(ours: list[Measured], theirs: list[Measured]) -> Results:
    return Results({OURS: ours, THEIRS: theirs})


def test_a_disturbed_round_is_left_out_of_a_row() -> None:
    found = results([measured(100), measured(900, others=2.0), measured(300)], [measured(50)])

    table = tables.comparison(found)

    assert "| mlp | 8 | ours | 200 (100-300) |" in table
    assert "1 disturbed rounds left out" in table
    assert "no result" not in table


def test_a_row_of_disturbed_rounds_only_says_that_it_is_no_result() -> None:
    found = results([measured(100, others=2.0)], [measured(50)])

    assert "| mlp | 8 | ours | 100 | 1.00 | 2.00 | 30 | 100 | disturbed, no result |" in tables.comparison(found)
    assert tables.ratios(found, "ours", ["theirs"]).endswith("disturbed, no result |")


def test_ratios_are_taken_within_rounds() -> None:
    found = results([measured(100, 1), measured(400, 2)], [measured(50, 4), measured(100, 4)])

    assert "| mlp | 8 | theirs | 3.00 (2.00-4.00) | theirs | 0.38 (0.25-0.50) |  |" in tables.ratios(
        found, "ours", ["theirs"]
    )


def test_nothing_is_compared_with_a_side_that_did_not_run() -> None:
    assert tables.ratios(Results({OURS: [measured(1)]}), "ours", ["theirs"]) == ""


def test_a_side_that_did_not_run_is_named_with_its_reason() -> None:
    found = Results({OURS: [measured(1)]}, {"theirs": "CannotBuild: no compiler"})

    assert "theirs did not run: CannotBuild: no compiler" in tables.comparison(found)


def test_a_disturbed_measurement_is_repeated_until_it_is_good() -> None:
    attempts = iter([measured(1, others=MAX_OTHERS_CORES * 2), measured(2), measured(3)])

    assert undisturbed(lambda: next(attempts), 3) == measured(2)


def test_the_last_attempt_counts_as_it_is() -> None:
    attempts = iter([measured(1, others=1.0), measured(2, others=1.0), measured(3)])

    assert undisturbed(lambda: next(attempts), 2) == measured(2, others=1.0)


def test_sides_are_chosen_by_parts_of_their_names() -> None:
    assert choose((CPP_ECHO, AIO_ECHO), "GRPC.AIO") == [AIO_ECHO]
    assert choose((CPP_ECHO, AIO_ECHO), None) == [CPP_ECHO, AIO_ECHO]
    with pytest.raises(SystemExit, match="no side is called 'triton'"):
        choose((CPP_ECHO, AIO_ECHO), "triton")


@pytest.mark.parametrize("num_floats", [1, 31, 32, 5000])
def test_bytes_survive_the_fields_of_another_protocol(num_floats: int) -> None:
    content = b"\0\0\x80\x3f" * num_floats

    assert read_prediction(_field(1, content)).tolist() == [1.0] * num_floats


def test_a_workload_finds_its_program(tmp_path: Path) -> None:
    assert Workload("m", tmp_path, "y", [], []).onnx == tmp_path / "model.onnx"


def test_a_curve_is_an_image_with_all_lines() -> None:
    drawn = curve.svg("a < b", "x", "y", {"one": [(0.5, 10), (3, 9)], "two": [(0.5, 8), (3, 1)]})

    lines = minidom.parseString(drawn).getElementsByTagName("polyline")
    assert [len(line.getAttribute("points").split()) for line in lines] == [2, 2]
