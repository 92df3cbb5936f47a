"""What an answer from the response cache costs through the whole server, next to the same answer computed.

    python tests/benchmarks/bench_cache.py [--calls 2000] [--rounds 3] [--redis redis://127.0.0.1:6379/0]

One caller, who shares the machine with the server.  The network has two million weights.  Every round asks in turn:
computed (a new question each time) and from memory (the same question); with --redis, in the end, from Redis (questions
whose answers only Redis has, because the memory of a second server holds none).  The limit of an answer from memory is
1.3 ms at the median.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import headrace  # noqa: E402
from tests.benchmarks.serving import tables  # noqa: E402
from tests.benchmarks.serving.quiet import Others  # noqa: E402
from tests.doubles import onnx_models  # noqa: E402
from tests.doubles.server_process import running  # noqa: E402

SIZES = (256, 1024, 1024, 1024, 10)
LIMIT_MS = 1.3


async def ask(client: headrace.Client, questions: np.ndarray, wants_kept: bool) -> list[float]:
    """The latency of each question, in milliseconds."""
    latencies = []
    for question in questions:
        began_at = time.perf_counter()
        prediction = await client.predict("m", question[None])
        latencies.append((time.perf_counter() - began_at) * 1000)
        assert prediction.is_from_cache == wants_kept, "not answered by what is being measured"
    return latencies


def line(name: str, latencies: list[float]) -> str:
    cuts = statistics.quantiles(latencies, n=100)
    return f"| {name} | {cuts[49]:.2f} | {cuts[98]:.2f} | {len(latencies)} |"


async def main(num_calls: int, num_rounds: int, redis: str) -> int:
    rng = np.random.default_rng(0)
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m.onnx"
        model.write_bytes(onnx_models.mlp(SIZES).SerializeToString())
        options = ["--model", f"m={model}", *(["--set", f"inference.cache_redis_url={redis}"] if redis else [])]
        async with running(Path(folder) / "data", *options) as (server, _):
            target = f"127.0.0.1:{(await server.logged('house.open'))['port']}"
            async with headrace.Client(target) as client:
                await client.update_model("m", cache=True)
                before = Others.now()
                for _ in range(num_rounds):
                    questions = rng.normal(size=(num_calls, SIZES[0])).astype(np.float32)
                    results.setdefault("computed", []).extend(await ask(client, questions, wants_kept=False))
                    same = np.repeat(questions[-1:], num_calls, axis=0)
                    results.setdefault("from memory", []).extend(await ask(client, same, wants_kept=True))
                last = questions
                cores = Others.now().cores_since(before)
        if redis:
            async with running(Path(folder) / "data", *options, "--set", "inference.cache_bytes=0") as (server, _):
                target = f"127.0.0.1:{(await server.logged('house.open'))['port']}"
                async with headrace.Client(target) as client:
                    results["from Redis"] = await ask(client, last, wants_kept=True)
    print(f"{tables.machine()}\n{num_rounds} rounds; other programs had {cores:.2f} cores\n")
    print("| answer | p50, ms | p99, ms | calls |\n|---|---|---|---|")
    for name, latencies in results.items():
        print(line(name, latencies))
    median = statistics.median(results["from memory"])
    print(f"\nfrom memory: {median:.2f} ms at the median, limit {LIMIT_MS} ms")
    return 0 if median < LIMIT_MS else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--redis", default="")
    chosen = parser.parse_args()
    sys.exit(asyncio.run(main(chosen.calls, chosen.rounds, chosen.redis)))
