"""The quickstart, with a real server: what it shows, what it leaves behind, and that its last words are true."""

import asyncio
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from google.protobuf.json_format import Parse

from headrace import Client
from headrace.inference.v1.inference_service_pb2 import PredictRequest
from headrace.training.v1.training_service_pb2 import StartTrainingRequest, StreamProgressRequest

PROGRAM = Path(__file__).resolve().parents[2] / "examples/quickstart.py"
REQUESTS = {
    "headrace.inference.v1.InferenceService/Predict": PredictRequest,
    "headrace.training.v1.TrainingService/StartTraining": StartTrainingRequest,
    "headrace.training.v1.TrainingService/StreamProgress": StreamProgressRequest,
}


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(text: str) -> dict[str, str]:
    """From each method that the quickstart names at its end to the request that it gives."""
    lines = [shlex.split(line) for line in text.splitlines() if line.strip().startswith("grpcurl")]
    return {words[-1]: words[words.index("-d") + 1] for words in lines}


@pytest.mark.slow
async def test_it_trains_watches_predicts_and_its_last_words_are_true(quickstart: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, str(PROGRAM), "--data", str(data), "--epochs", "4"]

    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=280, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "registered models/digits/versions/1" in result.stdout
    accuracy = re.search(r"unseen images are right: ([\d.]+)%", result.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 80
    assert "batch rows" in result.stdout
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(data) in " ".join(one.info["cmdline"] or [])]

    requests = by_hand(result.stdout)
    assert requests.keys() == REQUESTS.keys()
    async with quickstart.running_server(data) as target, Client(target) as client:
        request = Parse(requests["headrace.inference.v1.InferenceService/Predict"], PredictRequest())
        tensor = request.inputs["image"]
        image = np.array(tensor.floats.values, dtype=np.float32).reshape(tensor.shape)
        prediction = await client.predict(request.model, image)
        job = Parse(requests["headrace.training.v1.TrainingService/StreamProgress"], StreamProgressRequest()).name
        events = [event async for event in (await client.training_run(job)).follow()]

    assert prediction.model_version == "models/digits/versions/1"
    assert events[0].sequence == 1
    assert events[-1].ends_the_job


def test_requests_by_hand_are_in_the_contracts_form(quickstart: ModuleType) -> None:
    image = np.arange(64, dtype=np.float32).reshape(8, 8)

    for method, request in quickstart.by_hand(image, "trainingJobs/j1").values():
        Parse(quickstart.json.dumps(request), REQUESTS[method]())


def test_what_is_kept_back_is_not_trained_on(quickstart: ModuleType) -> None:
    images, labels, unseen_images, unseen_labels = quickstart.load_digits()

    assert len(images) + len(unseen_images) == 1797
    assert len(unseen_images) == len(unseen_labels) == 359
    assert len(images) == len(labels)
    assert set(np.unique(unseen_labels)) == set(range(10))


def test_an_image_is_drawn_row_by_row(quickstart: ModuleType) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    image[0, 0], image[7, 7] = 16, 16

    lines = quickstart.draw(image).split("\n")

    assert [len(line) for line in lines] == [16] * 8
    assert lines[0].startswith("██ ")
    assert lines[7].endswith(" ██")


def test_a_server_that_cannot_start_is_said_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "headrace.db").write_text("this is no database, but it is long enough to look like something")

    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--data", str(tmp_path / "data")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert result.returncode == 1
    assert "quickstart: the server did not start; its log says" in result.stderr
    assert "Traceback (most" not in result.stderr.partition("its log says")[0]
