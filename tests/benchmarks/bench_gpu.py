"""What serving on a GPU costs beside bare torch, and what each number format gains: a table of its own.

    .venv/bin/python tests/benchmarks/bench_gpu.py [seconds]

The same exported program (a transformer encoder of six layers over 32 tokens, and a small convolutional network) in 32
and 16 bits: "bare" calls it in torch on tensors that lie on the device, "session" is what a lane calls, from NumPy
arrays to NumPy arrays: one copy from pinned staging memory, rows gathered and converted on the device, a CUDA graph for
each size of batch; "two lanes" are two such sessions with the same weights, each on a thread and a stream of its own.
Rounds take turns; medians.  Says so and ends where there is no GPU.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from headrace_server.inference.backends.torch_graphs import GraphSession, open_on_gpu
from headrace_server.inference.backends.torch_lowering import lower
from headrace_server.precision import Precision
from headrace_server.tensors import DataType, Signature, Tensors, TensorSpec
from tests.doubles.torch_programs import save

ROWS = (1, 8, 32, 128)
ROUNDS = 3
DTYPES = {Precision.FP32: None, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class Encoder(nn.Module):
    """Six layers, 384 wide, mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 32, 384] to [B, 384]."""
        answer: Tensor = self.layers(x).mean(1)
        return answer


def convolutions() -> nn.Module:
    """Four blocks over 3x96x96."""
    blocks: list[nn.Module] = []
    for given, made in ((3, 64), (64, 128), (128, 256), (256, 512)):
        blocks += [nn.Conv2d(given, made, 3, 2, 1), nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def rate(run: Callable[[], object], rows: int, seconds: float) -> float:
    """Rows a second, after the runs that record and warm up."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    count, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        run()
        count += 1
    torch.cuda.synchronize()
    return count * rows / (time.perf_counter() - started_at)


def rate_of_two(session: GraphSession, feed: Tensors, rows: int, seconds: float) -> float:
    """Rows a second of two lanes together."""

    def work(_: int) -> float:
        lane = session.twin()
        try:
            return rate(lambda: lane.run(feed), rows, seconds)
        finally:
            lane.close()

    with ThreadPoolExecutor(2) as lanes:
        return sum(lanes.map(work, range(2)))


def measure(name: str, module: nn.Module, shape: tuple[int, ...], seconds: float) -> None:
    """Print one line for each number format and size of batch."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with tempfile.TemporaryDirectory() as folder:
        path = save(module, (torch.randn(2, *shape),), Path(folder), dynamic_shapes=({0: batch},))
        output = module(torch.randn(1, *shape)).shape[1]
        x = TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, *shape))
        y = TensorSpec(name="output", data_type=DataType.FP32, shape=(-1, output))
        names = torch.export.load(str(path)).graph_signature.user_inputs
        signature = Signature(inputs=(x.model_copy(update={"name": str(names[0])}),), outputs=(y,))
        for precision, dtype in DTYPES.items():
            session = open_on_gpu(path, signature, device="cuda:0", precision=precision, keeps_norms=False)
            program = torch.export.load(str(path))
            bare = (program.module() if dtype is None else lower(program, dtype, keeps_norms=False)).to("cuda:0")
            for rows in ROWS:
                array = np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32)
                tensor = torch.from_numpy(array).to("cuda:0")
                feed = {signature.inputs[0].name: array}
                rounds = []
                with torch.inference_mode():
                    for _ in range(ROUNDS):
                        one = rate(lambda: bare(tensor), rows, seconds)  # noqa: B023 - called at once
                        lane = rate(lambda: session.run(feed), rows, seconds)  # noqa: B023
                        rounds.append((one, lane, rate_of_two(session, feed, rows, seconds)))
                alone, served, two = (median(values) for values in zip(*rounds, strict=True))
                ratios = f"{served / alone:8.2f} {two / alone:8.2f}"
                print(f"{name:10} {precision:5} {rows:5} {alone:12,.0f} {served:12,.0f} {two:12,.0f} {ratios}")
            session.close()


def main(seconds: float) -> None:
    """Measure both networks."""
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured")
        return
    print(torch.cuda.get_device_name(), torch.__version__)
    titles = "".join(f" {title:>12}" for title in ("bare, rows/s", "session", "two lanes"))
    print(f"{'network':10} {'':5} {'rows':>5}{titles} {'ratio':>8} {'ratio':>8}")
    torch.manual_seed(0)
    measure("encoder", Encoder().eval(), (32, 384), seconds)
    measure("cnn", convolutions().eval(), (3, 96, 96), seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
