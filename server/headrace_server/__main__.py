"""`python -m headrace_server` is `headrace-server`."""

from headrace_server.cli import main

if __name__ == "__main__":
    main()
