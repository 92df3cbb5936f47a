"""How many files and connections this process may have open at a time.

Every connection is an open file.  What a process is given at its start is often 1024, for the sake of programs that use
select(2), while it may take far more by itself.
"""

import resource


def raise_limit() -> int:
    """Take all that may be had without a privilege, and say how many that is.  Programs started later inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most() -> int:
    """How many a server could have, once it has raised its limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
