"""A trainer process that does what `parameters["script"]` of its job file says, step by step.  A program, not a module.

["report", {…}]                 one report                     ["raw", "text"]      anything on the report pipe
["print", "text"]               a line on standard output      ["flood", n]         n lines on it
["checkpoint", step, is_best]   write and report a checkpoint  ["export"]           write and report an export
["spawn", "plain" | "session" | "hidden" | "stubborn"]         start a child; "hidden" also clears its environment
["rank", n, […]]                the steps of the list, on rank n alone
["print_world"]                 what this rank knows of the others
["wait_stop"]                   until a stop command comes     ["ignore_stop"]      go on whatever comes
["sleep", seconds]              ["signal", number]             to itself
["exit", code]                  ["stop_reports"]               close the report pipe
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHILD = "import signal, sys, time\nif sys.argv[1] == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
CHILD += "open(sys.argv[2], 'w').close()\ntime.sleep(600)"


class Trainer:
    """One run of one script."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.folder = Path(job["workspace"])
        self.stop = threading.Event()

    def listen(self) -> None:
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
        while content := os.read(0, 4096):
            if any(json.loads(line) == {"command": "stop"} for line in content.splitlines()):
                self.stop.set()
        os._exit(4)  # nobody is left to train for

    def write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self.job["report_descriptor"], content) :]

    def report(self, report: dict[str, Any]) -> None:
        self.write(json.dumps(report).encode() + b"\n")

    def do(self, verb: str, *arguments: Any) -> None:
        getattr(self, f"do_{verb}")(*arguments)

    def do_report(self, report: dict[str, Any]) -> None:
        self.report(report)

    def do_raw(self, text: str) -> None:
        self.write(text.encode())

    def do_print(self, text: str) -> None:
        print(text, flush=True)

    def do_flood(self, num: int) -> None:
        for start in range(0, num, 1000):
            sys.stdout.write("".join(f"flood {number}\n" for number in range(start, min(num, start + 1000))))
        sys.stdout.flush()

    def do_checkpoint(self, step: int, is_best: bool) -> None:
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"w" * step)
        (folder / "state.json").write_text(json.dumps({"step": step}))
        self.report({"kind": "checkpoint_written", "folder": str(folder), "step": step, "is_best": is_best})

    def do_export(self) -> None:
        folder = self.folder / "export"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"onnx")
        manifest = {
            "signature": {"inputs": [], "outputs": []},
            "artifacts": [{"path": "model.onnx", "format": "ONNX"}],
            "metrics": {"accuracy": 0.5},
            "lineage": {"step": 3},
        }
        (folder / "export.json").write_text(json.dumps(manifest))
        self.report({"kind": "export_written", "folder": str(folder)})

    def do_spawn(self, kind: str) -> None:
        ready = self.folder / f"child-{kind}"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind, str(ready)],
            start_new_session=kind in ("session", "hidden"),
            env={} if kind == "hidden" else None,
        )
        while not ready.exists():
            time.sleep(0.005)
        print(f"child {child.pid}", flush=True)

    def do_rank(self, rank: int, steps: list[list[Any]]) -> None:
        if int(os.environ.get("RANK", "0")) == rank:
            for verb, *arguments in steps:
                self.do(verb, *arguments)

    def do_print_world(self) -> None:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        print("world", *(os.environ.get(name, "none") for name in names), flush=True)
        print("meets at", os.environ.get("MASTER_PORT", "none"), flush=True)

    def do_wait_stop(self) -> None:
        self.stop.wait()

    def do_ignore_stop(self) -> None:
        time.sleep(600)

    def do_sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_signal(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(600)

    def do_exit(self, code: int) -> None:
        os._exit(code)

    def do_stop_reports(self) -> None:
        os.close(self.job["report_descriptor"])

    def do_resume_facts(self) -> None:
        folder = self.job["resume_from"]
        print("resumed from", Path(folder).name if folder else None, flush=True)
        print("data", Path(self.job["dataset_path"]).read_text(), flush=True)


def main() -> None:
    """Read the job file, do what it says."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the agent
    trainer = Trainer(json.loads(Path(sys.argv[1]).read_text()))
    threading.Thread(target=trainer.listen, daemon=True).start()
    for verb, *arguments in trainer.job["parameters"]["script"]:
        trainer.do(verb, *arguments)


if __name__ == "__main__":
    main()
