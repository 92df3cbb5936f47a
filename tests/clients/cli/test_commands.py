import asyncio
import json
import os
import re
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from typer.testing import Result

from headrace.training.v1.training_job_pb2 import TrainingJob
from headrace.training.v1.training_service_pb2 import CancelTrainingJobRequest
from headrace.training.v1.training_spec_pb2 import Optimizer, Sgd
from tests.clients.cli.conftest import Headrace
from tests.doubles.refusal import Refusal
from tests.doubles.scripted_server import ScriptedServer
from tests.doubles.scripted_training import history
from tests.doubles.until import until

COMMAND = [sys.executable, "-c", "from headrace.cli import main; main()"]
State = TrainingJob.State


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_watching_tells_what_happens_line_by_line_where_there_is_no_terminal(headrace: Headrace) -> None:
    result = headrace("watch", "j1")

    assert result.exit_code == 0
    assert "epoch 2: accuracy 1  loss 0.125  (best)" in result.stdout
    assert "registered models/digits/versions/1" in result.stdout
    assert "✓ models/digits/versions/1 is registered" in result.stdout


def test_watching_survives_a_cut(headrace: Headrace, server: ScriptedServer) -> None:
    server.training.cuts = [3, 1]

    result = headrace("watch", "j1", "--json")

    sequences = [int(json.loads(line)["sequence"]) for line in result.stdout.splitlines()]
    assert sequences == list(range(1, len(history()) + 1))


def test_a_failed_training_ends_with_its_evidence_and_its_own_code(headrace: Headrace, server: ScriptedServer) -> None:
    server.training.entries = history(ending=State.STATE_FAILED)

    result = headrace("watch", "j1")

    assert result.exit_code == 8
    assert "trainingJobs/j1 failed: its worker died 4 times" in result.stderr


def test_jobs_are_paused_resumed_cancelled_and_deleted_by_name(headrace: Headrace, server: ScriptedServer) -> None:
    server.training.has_ended = False

    assert "trainingJobs/j1 is PAUSING." in headrace("jobs", "pause", "j1", "--reason", "night").stdout
    assert server.training.pauses[0].reason == "night"
    assert parsed(headrace("jobs", "resume", "j1", "--json"))["state"] == "STATE_QUEUED"
    assert "trainingJobs/j1 is CANCELLING." in headrace("jobs", "cancel", "j1").stdout
    assert "trainingJobs/j1 is deleted." in headrace("jobs", "delete", "j1").stdout
    assert parsed(headrace("jobs", "delete", "j1", "--json")) == {"name": "trainingJobs/j1", "deleted": True}
    assert server.training.deleted == ["trainingJobs/j1"] * 2


def test_trainings_are_shown_side_by_side(headrace: Headrace) -> None:
    shown = headrace("jobs", "compare", "j1", "trainingJobs/j2").stdout

    assert re.search(r"steps +100 +200", shown)
    assert re.search(r"best accuracy +0.95 \(step 50\) +0.95 \(step 50\)", shown)
    assert re.search(r"recipe.seed +1 +2", shown)
    assert re.search(r"environment.torch +2.13.0", shown)
    found = parsed(headrace("jobs", "compare", "j1", "j2", "--json"))
    assert [job["name"] for job in found["jobs"]] == ["trainingJobs/j1", "trainingJobs/j2"]


def test_a_cancelled_training_ends_with_its_own_code(headrace: Headrace, server: ScriptedServer) -> None:
    server.training.entries = history(ending=State.STATE_CANCELLED)

    assert headrace("watch", "j1").exit_code == 9


async def test_ctrl_c_leaves_the_training_alone_and_says_how_to_come_back() -> None:
    server = ScriptedServer()
    server.training.has_ended = False
    async with server.listen():
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "watch",
            "j1",
            "--server",
            server.target,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await until(lambda: server.training.readers == 1)
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 130
    assert f"headrace watch j1 --server {server.target}" in said.decode()
    assert "Traceback" not in said.decode()
    assert server.training.cancels == []


def test_flags_become_a_specification(headrace: Headrace, server: ScriptedServer) -> None:
    words = "train image --dataset digits --model digits --epochs 3 --width 16 --optimizer sgd --learning-rate 0.1"

    job = parsed(headrace(*words.split(), "--label", "team=blue", "--device", "cpu", "--flip", "--json"))

    assert job["spec"]["imageClassification"] == {"width": 16, "augmentation": {"flip": True}}
    assert job["labels"] == {"team": "blue"}
    spec = server.training.requests[0].spec
    assert spec.optimizer == Optimizer(sgd=Sgd(learning_rate=0.1))
    assert (spec.dataset, spec.epochs) == ("datasets/digits", 3)


def test_every_flag_of_a_recipe_reaches_its_field(headrace: Headrace, server: ScriptedServer) -> None:
    words = "--schedule linear --warmup 0.1 --micro-batches 4 --split-to-fit --max-gradient-norm 1 --average-decay 0.9"
    words += " --on-non-finite lower_rate --deterministic --compilation never --strategy fully_sharded"
    words += " --label-smoothing 0.1 --dataset d --model m"

    headrace("train", "image", *words.split())

    assert MessageToDict(server.training.requests[0].spec) == {
        "dataset": "datasets/d",
        "model": "models/m",
        "imageClassification": {"labelSmoothing": 0.1},
        "schedule": {"linear": {"warmupFraction": 0.1}},
        "microBatches": 4,
        "splitToFit": True,
        "maxGradientNorm": 1.0,
        "movingAverage": {"decay": 0.9},
        "numerics": {"onNonFinite": "ACTION_LOWER_RATE"},
        "deterministic": True,
        "compilation": "COMPILATION_NEVER",
        "strategy": "STRATEGY_FULLY_SHARDED",
    }


def test_tables_and_plugins_are_trained_too(headrace: Headrace, server: ScriptedServer) -> None:
    common = ["--dataset", "d", "--model", "m"]

    headrace("train", "tabular", *common, "--target", "t", "--hidden", "64,32", "--task", "regression")
    headrace("train", "plugin", *common, "--name", "forest", "--set", "depth=3", "--set", "kind=oak")

    tabular, plugin = (request.spec for request in server.training.requests)
    assert list(tabular.tabular.hidden_widths) == [64, 32]
    assert dict(plugin.plugin.parameters) == {"depth": 3.0, "kind": "oak"}


def test_a_file_may_say_everything_and_follow_watches(headrace: Headrace, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"dataset": "datasets/d", "model": "models/m", "tabular": {"target": "t"}}')

    result = headrace("train", "--spec", path, "--follow")

    assert result.exit_code == 0
    assert "is registered" in result.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train image --dataset d --model m --epochs 1 --steps 2", "--epochs or --steps, not both"),
        ("train image --dataset d --model m --precision fp4", "--precision must be one of"),
        ("train tabular --dataset d --model m --hidden wide", "not a list of numbers"),
        ("train plugin --dataset d --model m --set depth", "is not KEY=VALUE"),
        ("train --spec none.json", "No such file"),
        ("train --spec pyproject.toml", "pyproject.toml: "),
        ("predict digits --input [[1,2],[3]]", "--input [[1,2],[3]]"),
        ("predict digits --input rows.txt", "must be a .npy"),
        ("predict digits --input none.npy", "No such file"),
        ("datasets upload d none.csv", "No such file"),
        ("datasets upload d none.csv --format xls", "--format must be one of"),
        ("models load digits --backend tpu", "--backend must be one of"),
        ("models update digits --precision fp7", "--precision must be one of"),
        ("models update digits", "nothing to change"),
    ],
)
def test_a_slip_of_the_hand_is_one_sentence_and_code_two(words: str, sentence: str, headrace: Headrace) -> None:
    result = headrace(*words.split())

    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC", 2),
        (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND", 3),
        (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN", 4),
        (grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED", 4),
        (grpc.StatusCode.PERMISSION_DENIED, "", 7),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 1),
    ],
)
def test_the_exit_code_tells_the_category(
    code: grpc.StatusCode, reason: str, exit_code: int, headrace: Headrace, server: ScriptedServer
) -> None:
    server.training.refusals = [Refusal(code, "no", reason)]

    assert headrace("cancel", "j1").exit_code == exit_code


def test_every_wrong_field_is_named(headrace: Headrace, server: ScriptedServer) -> None:
    violations = {"spec.epochs": "must be at least 1", "spec.dataset": "is missing"}
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", "INVALID_SPEC", violations=violations)
    server.training.refusals = [refusal, refusal]
    words = ["train", "image", "--dataset", "d", "--model", "m"]

    plain, as_json = headrace(*words), headrace(*words, "--json")

    assert plain.stderr.splitlines() == [
        "headrace: 2 fields are wrong", "  spec.epochs: must be at least 1", "  spec.dataset: is missing",
    ]  # fmt: skip
    error = json.loads(as_json.stderr)["error"]
    assert error["reason"] == "INVALID_SPEC"
    assert {one["field"] for one in error["violations"]} == set(violations)


def test_a_full_queue_says_when_to_come_back(headrace: Headrace, server: ScriptedServer) -> None:
    after = timedelta(minutes=2)
    full = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "1000 jobs wait", "QUEUE_FULL", retry_after=after)
    server.training.refusals = [full]

    result = headrace("train", "image", "--dataset", "d", "--model", "m")

    assert result.exit_code == 5
    assert "try again in 120 s" in result.stderr


def test_nobody_there_is_said_with_advice(headrace: Headrace) -> None:
    result = headrace("jobs", "list", "--server", "127.0.0.1:1")

    assert result.exit_code == 6
    assert result.stderr.startswith("headrace: no server answers at 127.0.0.1:1; `headrace-server serve` starts one")


def test_jobs_are_listed(headrace: Headrace) -> None:
    assert "p0 " in headrace("jobs", "list").stdout
    assert len(parsed(headrace("jobs", "list", "--json", "--limit", 5))) == 5


def test_cancelling_passes_on_how_and_why(headrace: Headrace, server: ScriptedServer) -> None:
    server.training.has_ended = False

    result = headrace("cancel", "j1", "--kill", "--reason", "wrong data")

    assert result.stdout == "trainingJobs/j1 is CANCELLING.\n"
    assert server.training.cancels[0].mode == CancelTrainingJobRequest.Mode.MODE_KILL


def test_logs_are_printed_as_they_were_written(headrace: Headrace) -> None:
    assert headrace("logs", "j1", "--after", 3, "--follow").stdout == "line 4\nline 5\n"


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "json", "inline", "named"])
def test_input_comes_in_many_forms(kind: str, headrace: Headrace, server: ScriptedServer, tmp_path: Path) -> None:
    rows = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]])
    path = tmp_path / f"rows.{kind}"
    match kind:
        case "npy":
            np.save(path, rows)
        case "npz":
            np.savez(path, x=rows)
        case "json":
            path.write_text(json.dumps(rows.tolist()))
        case "csv":
            server.inference.inputs[0].shape[:] = [-1]
            server.inference.inputs[0].name = "mass"
            path.write_text("mass\n1.5\n2\n")
    text = {"inline": "[[1,2,3],[4,5,7]]", "named": '{"x": [[1,2,3],[4,5,7]]}'}.get(kind, str(path))

    if kind == "csv":
        headrace("predict", "digits", "--input", text)
        assert np.frombuffer(server.inference.requests[0].inputs["mass"].data, "<f4").tolist() == [1.5, 2.0]
    else:
        tree = parsed(headrace("predict", "digits", "--input", text, "--json"))
        assert tree["outputs"]["plus_one"] == (rows + 1).tolist()
        assert tree["timing"]["computeSeconds"] == pytest.approx(3e-4)


def test_a_prediction_is_a_table_with_the_best_class_and_the_times(headrace: Headrace) -> None:
    result = headrace("predict", "digits", "-i", "[[1, 2, 3], [4, 4, 5]]")

    assert "even" in result.stdout
    assert "odd" in result.stdout
    assert "compute 300 µs" in result.stdout


def test_data_sets_go_up_and_away(headrace: Headrace, tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, images=np.zeros((4, 8, 8)))

    assert "datasets/digits/versions/" in headrace("datasets", "upload", "digits", path).stdout
    assert parsed(headrace("datasets", "list", "--json"))[0]["name"] == "datasets/digits"
    assert "images float32[8, 8]" in headrace("datasets", "show", "digits").stdout
    assert headrace("datasets", "delete", "digits").exit_code == 0
    assert headrace("datasets", "show", "digits").exit_code == 3
    assert "There are no data sets" in headrace("datasets", "list").stdout


def test_models_go_up_get_names_and_come_down(headrace: Headrace, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")

    assert "x FP32 [any, 3]" in headrace("models", "upload", "digits", path).stdout
    assert "champion → 1" in headrace("models", "alias", "set", "digits", "champion", 1).stdout
    assert "champion" in headrace("models", "versions", "digits").stdout
    assert parsed(headrace("models", "list", "--json"))[0]["aliases"] == {"champion": "models/digits/versions/1"}
    assert "accuracy 0.97" in headrace("models", "show", "digits").stdout
    updated = headrace("models", "update", "digits", "--precision", "auto", "--min-cosine", 0.9995, "--pin").stdout
    assert ("auto" in updated, "cosine 0.9995" in updated, "yes" in updated) == (True, True, True)
    assert "shared with other models" in headrace("models", "update", "digits", "--lane-sharing", "shared").stdout
    assert "own, shared" in headrace("models", "update", "digits", "--lane-sharing", "both").stderr
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 3), np.float32))
    planned = headrace("models", "plan", "digits", "--measure", "--calibrate", tmp_path / "rows.npz").stdout
    assert "the fastest within the tolerances" in planned
    assert ("2,000" in planned, "chosen" in planned, "3 elements overflow" in planned) == (True, True, True)
    assert parsed(headrace("models", "plan", "digits", "--json"))["state"] == "STATE_CHOSEN"
    assert "answers, on onnxruntime" in headrace("models", "load", "digits").stdout
    assert "is unloaded" in headrace("models", "unload", "digits").stdout
    assert "no aliases" in headrace("models", "alias", "delete", "digits", "champion").stdout
    where = parsed(headrace("models", "download", "digits", tmp_path, "--json"))["path"]
    assert Path(where).read_bytes() == b"onnx"


def test_trainers_and_status_say_what_a_server_is(headrace: Headrace) -> None:
    assert "required" in headrace("trainers").stdout
    assert parsed(headrace("status", "--json"))["health"] == "SERVING"
    assert "serving" in headrace("status").stdout


def test_help_is_there_for_every_command(headrace: Headrace) -> None:
    for words in ("", "train image", "train tabular", "train plugin", "models alias set", "datasets upload", "watch"):
        result = headrace(*words.split(), "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert "9 training cancelled" in " ".join(headrace("--help").stdout.split())
    assert headrace("--version").stdout.startswith("headrace 0.")


async def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    server = ScriptedServer()
    async with server.listen():
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "jobs", "list", "--json", "--server", server.target, stdout=write, stderr=asyncio.subprocess.PIPE
        )
        os.close(write)
        os.close(read)
        _, said = await asyncio.wait_for(process.communicate(), 60)

    assert (process.returncode, said) == (0, b"")
