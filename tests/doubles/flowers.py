"""A table that is easy to learn, and how to have it learnt through the public contract."""

import random
from collections.abc import AsyncIterator

from headrace.datasets.v1 import dataset_service_pb2 as datasets_pb
from headrace.training.v1 import training_service_pb2 as training_pb, training_spec_pb2 as spec_pb
from tests.doubles.server_process import Callers


def flowers(num_rows: int = 400) -> bytes:
    """Two columns of numbers that tell two kinds apart."""
    chance = random.Random(1)
    lines = ["length,width,kind"]
    for row in range(num_rows):
        kind = row % 2
        lines.append(f"{chance.gauss(2.0 * kind, 0.4):.3f},{chance.gauss(-kind, 0.4):.3f},{'iris' if kind else 'rose'}")
    return "\n".join(lines).encode()


async def upload_flowers(callers: Callers, num_rows: int = 400) -> None:
    """Store them as `datasets/flowers`."""
    header = datasets_pb.UploadDatasetHeader(dataset="datasets/flowers", file_name="flowers.csv")

    async def each() -> AsyncIterator[datasets_pb.UploadDatasetRequest]:
        yield datasets_pb.UploadDatasetRequest(header=header)
        yield datasets_pb.UploadDatasetRequest(chunk=flowers(num_rows))

    await callers.datasets.UploadDataset(each())


def learn_flowers(job_id: str, epochs: int = 3, **spec: object) -> training_pb.StartTrainingRequest:
    """Train a small network on them."""
    asked = spec_pb.TrainingSpec(
        dataset="datasets/flowers",
        model="models/flowers",
        tabular=spec_pb.TabularTrainer(target="kind", hidden_widths=[8]),
        epochs=epochs,
        seed=1,
        **spec,  # type: ignore[arg-type]
    )
    return training_pb.StartTrainingRequest(job_id=job_id, spec=asked)
