"""The command line: the commands of every folder, and errors as one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from bench import commands as bench
from engine import commands as engine
from export import commands as export
from lddgan import commands as lddgan
from lddgan.errors import BadInput, LddganError, Stopped
from lddgan.memory import is_out_of_memory
from lddgan.options import print_once, rank_prefix, warn
from lddgan.signals import ended_by_signals
from lddgan.streams import drop_stdout


class Commands(TyperGroup):
    """All commands; in their arguments ~ is the home folder, as after --out= no shell has it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parts = [re.fullmatch(r"(--[\w-]+=|)(~.*)", arg, re.DOTALL) for arg in args]
        paths = [found and found[1] + os.path.expanduser(found[2]) for found in parts]
        return super().parse_args(ctx, [path or arg for path, arg in zip(paths, args, strict=True)])


app = typer.Typer(
    cls=Commands,
    help="Inference engine for latent denoising diffusion GANs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(bench.presets)
app.command()(engine.doctor)
app.command("import")(export.import_)
app.add_typer(lddgan.datasets, name="dataset")
app.command()(lddgan.train_autoencoder)
app.command()(lddgan.train)
app.command()(export.export)
app.command()(engine.build)
app.command()(engine.verify)
app.command()(engine.sample)
app.command()(engine.serve)
app.command()(bench.bench)

BAD_INPUT, FAILURE = 2, 1  # exit codes; Ctrl-C is 130, SIGTERM 143, SIGHUP 129


@ended_by_signals()
def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of nvidia-smi
    try:
        app(prog_name="lddgan")
    except Stopped as error:
        print_once(str(error), err=True)
        sys.exit(FAILURE if error.signal is None else 128 + error.signal)
    except LddganError as error:
        warn(f"{rank_prefix()}error: {error}")
        sys.exit(BAD_INPUT if isinstance(error, BadInput) else FAILURE)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        warn("error: memory ran out; ask for less at once, or end what else uses it")
        sys.exit(FAILURE)
    except OSError as error:
        drop_stdout()  # which may be what failed
        where = error.filename or "input or output"
        warn(f"error: {where}: {error.strerror or error}")
        sys.exit(FAILURE)


if __name__ == "__main__":
    from lddgan.__main__ import main as start

    start()
