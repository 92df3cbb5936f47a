"""`python -m headrace_server.trainers job.json`: one training, in a process of its own."""

import sys

from headrace_server.trainers.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
