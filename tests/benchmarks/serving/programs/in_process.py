"""ONNX Runtime without any server.

    python in_process.py MODEL NUM_SESSIONS THREADS_EACH BATCH_ROWS SECONDS REQUEST.npz

Each session has a thread that runs it over and over with the same batch.  Prints rows a second, and the p50 and p99 of
a run in milliseconds, as JSON.
"""

import json
import sys
import threading
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Measure once."""
    model, request = sys.argv[1], np.load(sys.argv[6])
    num_sessions, num_threads, num_rows = (int(text) for text in sys.argv[2:5])
    seconds = float(sys.argv[5])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    inputs = {name: np.repeat(request[name], num_rows, axis=0) for name in request.files}
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(num_sessions)
    ]
    begin = threading.Barrier(num_sessions + 1)
    taken: list[float] = []

    def work(session: onnxruntime.InferenceSession) -> None:
        mine: list[float] = []
        session.run(None, inputs)
        begin.wait()
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            session.run(None, inputs)
            mine.append(time.perf_counter() - now)
        taken.extend(mine)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    begin.wait()
    began_at = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began_at
    p50, p99 = np.quantile(taken, (0.5, 0.99)) * 1e3
    print(json.dumps({"rows_per_second": len(taken) * num_rows / took, "p50_ms": p50, "p99_ms": p99}))


main()
