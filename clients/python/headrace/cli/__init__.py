"""The `headrace` command.  `main` is its entry point; everything else is loaded when it runs."""

import os


def main() -> None:
    """Run the command line."""
    # gRPC's core writes lines of its own to standard error; what matters in them is in our errors too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from headrace.cli.app import app

    app(prog_name="headrace")
