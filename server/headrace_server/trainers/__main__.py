"""`python -m headrace_server.trainers job.json`: one training, in a process of its own."""

import os
import sys

from headrace_server.trainers.process import main

if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is reported.  Threads of libraries that a tidy end would have to wait for have been seen to abort it.
    os._exit(exit_code)
