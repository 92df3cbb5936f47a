"""The recipe in Lightning, as its documentation writes it.  A program for an environment with `lightning`.

    python lightning_peer.py SHAPE STEPS LOGS

LOGS: "bare" without a logger, progress bar and checkpoints, or "usual", with what it does by default.
Prints what a step took, as JSON, after a short fit that warms up.
"""

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning  # type: ignore[import-not-found]
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.benchmarks.training.clock import Clock
from tests.benchmarks.training.recipe import SHAPES, Shape


class Module(lightning.LightningModule):  # type: ignore[misc]
    """The recipe."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.network = shape.network()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One step, whose loss is logged."""
        inputs, targets = batch
        loss = functional.cross_entropy(self.network(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), fused=True)


def fit(shape: Shape, num_steps: int, logs: str, folder: str) -> Clock:
    """Seconds of one step."""
    is_usual = logs == "usual"
    loader = DataLoader(TensorDataset(*shape.rows()), batch_size=shape.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        logger=is_usual,
        enable_checkpointing=is_usual,
        enable_progress_bar=is_usual,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Module(shape)
    begin = Clock.now()
    trainer.fit(module, loader)
    return begin.each_of(num_steps)


def main() -> None:
    """Measure."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    shape, num_steps, logs = SHAPES[sys.argv[1]], int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as folder:
        fit(shape, 3, logs, folder)
        clock = fit(shape, num_steps, logs, folder)
    print("\n" + json.dumps({"wall": clock.wall, "processor": clock.processor}))


if __name__ == "__main__":
    main()
