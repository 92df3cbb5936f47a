"""Handwritten digits, from arrays to predictions, over gRPC: start a server, train, watch, ask.  One minute.

    python examples/quickstart.py

A fifth of the 1,797 images never leaves this program until the end, so that the model is asked about images that
neither its training nor its evaluation has seen.  (The trainer holds out a fifth of its own, to know which weights are
best.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.columns import Columns
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import headrace
from headrace.cli.live import raise_unless_succeeded, show

DATA = Path(".headrace-quickstart")
SERVER = Path(sys.executable).with_name("headrace-server")
START_SECONDS = 60
STOP_SECONDS = 30
SHADES = " ░▒▓█"


async def quickstart(console: Console, data: Path, epochs: int) -> None:
    """Do everything, and say what is done."""
    images, labels, unseen_images, unseen_labels = load_digits()

    chapter(console, "1  A server")
    async with running_server(data) as target, headrace.Client(target) as client:
        console.print(f"listens on {target}, keeps everything in {data}/")

        chapter(console, "2  A data set")
        version = await client.upload_dataset("digits", {"images": images, "labels": labels})
        console.print(f"uploaded {version.num_rows:,} images as {version.name}")
        console.print(f"kept {len(unseen_images)} images here, for the questions at the end")

        chapter(console, "3  A training, watched live")
        run = await client.start_training(
            dataset="digits",
            model="digits",
            trainer=headrace.ImageClassificationTrainer(),
            epochs=epochs,
            seed=7,
        )
        raise_unless_succeeded(await show(run, console))

        chapter(console, "4  A model, registered and served")
        model = await client.get_model_version(run.job.model_version)
        started_at = time.monotonic()
        loaded = await client.load_model("digits")
        took = time.monotonic() - started_at
        measures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(model.metrics.items()))
        files = ", ".join(artifact.path for artifact in model.artifacts)
        console.print(f"{model.name}: {measures} on the trainer's held-out rows; {files}")
        console.print(f'"digits" now means {loaded.model_version}: loaded on {loaded.backend} in {took:.2f} s')

        chapter(console, "5  Predictions on images it never saw")
        predictions = {
            "one image": await client.predict("digits", unseen_images[:1]),
            "one image, again": await client.predict("digits", unseen_images[:1]),
            f"all {len(unseen_images)} images at once": await client.predict("digits", unseen_images),
        }
        answers = list(predictions.values())[-1].labels
        draw_answers(console, unseen_images, unseen_labels, answers)
        predictions["64 images over one stream, the last"] = await last_of_stream(client, unseen_images[:64])
        console.print(timing_table(predictions))

    chapter(console, "6  The same by hand")
    print_by_hand(console, data, unseen_images[0], run.name)


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels to train on, and a random fifth that is kept back: `[N, 8, 8]` from 0 to 16, and `[N]`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images.astype(np.float32)[order], digits.target.astype(np.int64)[order]
    fifth = len(order) // 5
    return images[fifth:], labels[fifth:], images[:fifth], labels[:fifth]


@asynccontextmanager
async def running_server(data: Path) -> AsyncIterator[str]:
    """A server of our own on a free port; yields "host:port", and ends it cleanly however the block is left."""
    log = data / "server.log"
    await asyncio.to_thread(data.mkdir, parents=True, exist_ok=True)
    flags = ["--port", "0", "--data", str(data), "--set", "telemetry.metrics_port=0"]
    with await asyncio.to_thread(log.open, "wb") as output:
        # A session of its own, so that Ctrl-C reaches this program, which then ends the server.
        process = await asyncio.create_subprocess_exec(
            str(SERVER), "serve", *flags, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield f"127.0.0.1:{await port_of(process, log)}"
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def port_of(process: asyncio.subprocess.Process, log: Path) -> int:
    """The port that the server's log says it listens on."""
    deadline = time.monotonic() + START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        for line in (await asyncio.to_thread(log.read_text, encoding="utf-8")).splitlines():
            if '"event": "house.open"' in line and line.endswith("}"):
                return int(json.loads(line)["port"])
        await asyncio.sleep(0.05)
    said = await asyncio.to_thread(log.read_text, encoding="utf-8")
    raise SystemExit(f"quickstart: the server did not start; its log says:\n{said}")


async def last_of_stream(client: headrace.Client, images: NDArray[np.float32]) -> headrace.Prediction:
    """Ask about images one by one, all over one stream; returns the last answer."""
    async with aclosing(client.predict_stream("digits", [image[None] for image in images], window=16)) as answers:
        async for answer in answers:
            last = answer.unwrap()
    return last


def draw_answers(console: Console, images: NDArray[np.float32], labels: NDArray[np.int64], answers: list[str]) -> None:
    """Ten images with what the model says, the mistakes among them first; then how often it was right."""
    is_right = np.array(answers) == labels.astype(str)
    shown = sorted(range(len(labels)), key=lambda index: bool(is_right[index]))[:10]
    drawings = []
    for index in sorted(shown):
        says = f"says {answers[index]}" + ("" if is_right[index] else f", is {labels[index]}")
        drawing = Text(draw(images[index]), style="cyan" if is_right[index] else "red")
        drawings.append(Text.assemble(drawing, "\n", (f"{says:^16}", "bold" if is_right[index] else "bold red")))
    console.print(Columns(drawings, padding=(1, 2)))
    wrong = f"{(~is_right).sum()} mistakes, all shown in red" if (~is_right).sum() <= len(shown) else "mistakes in red"
    console.print(
        f"\n{is_right.sum()} of {len(labels)} unseen images are right: {is_right.mean():.1%} ({wrong})\n",
        style="bold green",
    )


def draw(image: NDArray[np.float32]) -> str:
    """An image of 0 to 16 as eight lines of sixteen characters."""
    levels = np.clip(image / 16 * len(SHADES), 0, len(SHADES) - 1).astype(int)
    return "\n".join("".join(SHADES[level] * 2 for level in row) for row in levels)


def timing_table(predictions: dict[str, headrace.Prediction]) -> Table:
    """Where the time of each call went."""
    table = Table(title="where the time went, in milliseconds", title_justify="left", title_style="dim", box=None)
    table.add_column("call")
    for column in ("queue", "assemble", "compute", "respond", "transport", "total", "batch rows"):
        table.add_column(column, justify="right")
    for name, prediction in predictions.items():
        timing = prediction.timing
        seconds = (
            timing.queue_seconds,
            timing.assemble_seconds,
            timing.compute_seconds,
            timing.respond_seconds,
            timing.transport_seconds,
            timing.total_seconds,
        )
        table.add_row(name, *(f"{1e3 * part:.2f}" for part in seconds), str(timing.batch_rows))
    return table


def by_hand(image: NDArray[np.float32], job: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What to ask by hand: for each purpose a method and its request, in the contract's JSON form."""
    tensor = {
        "data_type": "DATA_TYPE_FP32",
        "shape": [1, 8, 8],
        "floats": {"values": [int(value) for value in image.ravel()]},
    }
    spec = {"dataset": "datasets/digits", "model": "models/digits", "epochs": 5, "image_classification": {}}
    return {
        "ask the model": (
            "headrace.inference.v1.InferenceService/Predict",
            {"model": "models/digits", "inputs": {"image": tensor}},
        ),
        "train another version": ("headrace.training.v1.TrainingService/StartTraining", {"spec": spec}),
        "watch a training, from its first event": (
            "headrace.training.v1.TrainingService/StreamProgress",
            {"name": job},
        ),
    }


def print_by_hand(console: Console, data: Path, image: NDArray[np.float32], job: str) -> None:
    """How to go on without this program."""
    console.print("Start a server with what was made here (`make serve` starts one with a folder of its own):\n")
    console.print(
        f"  {SERVER.parent.parent.name}/bin/headrace-server serve --data {data}\n", soft_wrap=True, style="cyan"
    )
    console.print("Then, in another terminal; no file is needed, the server shows its contract by reflection:")
    for purpose, (method, request) in by_hand(image, job).items():
        console.print(f"\n  # {purpose}", style="dim")
        line = f"  grpcurl -plaintext -d '{json.dumps(request, separators=(',', ':'))}' 127.0.0.1:50051 {method}"
        console.print(line, soft_wrap=True, markup=False, style="cyan")
    console.print("\nThe `headrace` command does the same with fewer letters: headrace --help")


def chapter(console: Console, title: str) -> None:
    """Begin a part."""
    console.print()
    console.print(Rule(f"[bold]{title}[/]", align="left", style="dim"))


def main() -> None:
    """Read the flags and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="where the server keeps everything (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images (%(default)s)")
    flags = parser.parse_args()
    console = Console(highlight=False)
    started_at = time.monotonic()
    try:
        asyncio.run(quickstart(console, flags.data, flags.epochs))
    except headrace.HeadraceError as error:
        raise SystemExit(f"quickstart: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("quickstart: interrupted; the server has ended") from None
    console.print(f"\nAll of it took {time.monotonic() - started_at:.0f} s.", style="dim")


if __name__ == "__main__":
    main()
