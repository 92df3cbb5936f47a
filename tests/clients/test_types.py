"""Wrong use of the client is found by a type checker, and right use is not."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import headrace
import numpy as np

async def right(client: headrace.Client) -> str:
    run = await client.start_training(
        dataset="d", model="m", trainer=headrace.TabularTrainer(target="t"), epochs=3, precision="bf16", device="cpu"
    )
    async for event in run.follow():
        match event.content:
            case headrace.StepCompleted() as step:
                loss: float = step.loss
            case headrace.EvaluationCompleted(metrics=metrics):
                accuracy: float = metrics["accuracy"]
    prediction = await client.predict("m", {"x": np.zeros((1, 3))})
    return prediction.model_version + (await run.wait()).model_version

def right_without_async(client: headrace.BlockingClient) -> float:
    run = client.start_training(headrace.training_spec(dataset="d", model="m", steps=5))
    steps = [event.sequence for event in run.follow(after=3)]
    for answer in client.predict_stream("m", [np.zeros((1, 3))], window=2):
        steps.append(answer.index)
    return client.predict("m", [[1.0]], timeout=5).timing.compute_seconds + sum(steps)

async def wrong(client: headrace.Client, plain: headrace.BlockingClient) -> None:
    await client.start_training(dataset="d", epoch=3)  # WRONG call-arg
    await client.start_training(precision="fp4")  # WRONG arg-type
    await client.start_training(trainer="tabular")  # WRONG arg-type
    headrace.TabularTrainer(goal="t")  # WRONG call-arg
    number: int = (await client.predict("m", [[1.0]])).model_version  # WRONG assignment
    await client.upload_dataset("d", 5)  # WRONG arg-type
    await client.load_model("m", backend="tpu")  # WRONG arg-type
    headrace.Clint()  # WRONG attr-defined
    plain.predict("m", [[1.0]], time_out=5)  # WRONG call-arg
    for event in client.follow("j"):  # WRONG attr-defined
        pass
"""


def test_mistakes_are_found_where_they_are_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    expected = {
        (number, match[1])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if (match := re.search(r"# WRONG (\S+)", line))
    }

    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache")]
    result = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=280, check=False)

    found = re.findall(r"program\.py:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == expected, result.stdout
