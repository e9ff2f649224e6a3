"""`python -m lddgan`: the command `lddgan`. A signal ends it at once until it is at work."""

from __future__ import annotations

from lddgan.signals import ENDING, exit_at_once, handle

handle(exit_at_once, *ENDING)  # before what takes long to import


def main() -> None:
    """Run the command line."""
    from cli import main as run
    from lddgan.streams import open_streams

    open_streams()
    run()


if __name__ == "__main__":
    main()
