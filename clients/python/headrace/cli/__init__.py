"""The `headrace` command.  `main` is its entry point; everything else is loaded when it runs."""


def main() -> None:
    """Run the command line."""
    from headrace.cli.app import app

    app(prog_name="headrace")
