"""A training of the tiny task that is compiled, as a process of its own.  A program, not a module.

    python -m tests.doubles.compiled_run CACHE

Prints, as JSON, how often compiled code was found in the cache and how often it was not, and the loss of each report.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.recipe import Compilation, Steps
from headrace_server.trainers.reports import EvaluationCompleted, WarningRaised
from tests.doubles.loop_run import PLAIN, Run
from tests.doubles.tiny_task import TinyTask


def main() -> None:
    """Train."""
    torch.set_num_threads(1)
    recipe = PLAIN.model_copy(update={"length": Steps(count=5), "compilation": Compilation.ALWAYS})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), recipe, TinyTask(is_plain=True), compile_cache=CompileCache(Path(sys.argv[1]), 1 << 30))
        run.go()
    assert not [report for report in run.reports if isinstance(report, WarningRaised)], run.reports
    found = counters["inductor"]
    losses = [report.metrics["loss"] for report in run.reports if isinstance(report, EvaluationCompleted)]
    told = {"hits": found["fxgraph_cache_hit"], "misses": found["fxgraph_cache_miss"], "losses": losses}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
