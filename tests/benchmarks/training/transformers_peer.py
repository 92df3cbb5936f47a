"""The recipe in the Trainer of Hugging Face.  A program for an environment with `transformers` and `accelerate`.

    python transformers_peer.py SHAPE STEPS LOGS

LOGS: "bare" without reports and checkpoints, or "usual", with a report every 500 steps and a checkpoint every 500.
Prints what a step took, as JSON, after a short training that warms up.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.benchmarks.training.clock import Clock
from tests.benchmarks.training.recipe import SHAPES, Shape


class Rows(Dataset[dict[str, Tensor]]):
    """The rows, one at a time, as the Trainer wants them."""

    def __init__(self, shape: Shape) -> None:
        self.inputs, self.labels = shape.rows()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Model(nn.Module):
    """The network, which answers with its loss first, as the Trainer wants it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.network = shape.network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss and the scores."""
        scores = self.network(inputs)
        return {"loss": functional.cross_entropy(scores, labels), "logits": scores}


def fit(shape: Shape, num_steps: int, logs: str, folder: str) -> Clock:
    """Seconds of one step."""
    is_usual = logs == "usual"
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=shape.batch_size,
        optim="adamw_torch_fused",
        learning_rate=1e-3,
        weight_decay=0.01,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="steps" if is_usual else "no",
        logging_strategy="steps" if is_usual else "no",
    )
    trainer = Trainer(model=Model(shape), args=arguments, train_dataset=Rows(shape))
    begin = Clock.now()
    trainer.train()
    return begin.each_of(num_steps)


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    shape, num_steps, logs = SHAPES[sys.argv[1]], int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as folder:
        fit(shape, 3, logs, folder)
        clock = fit(shape, num_steps, logs, folder)
    print("\n" + json.dumps({"wall": clock.wall, "processor": clock.processor}))


if __name__ == "__main__":
    main()
