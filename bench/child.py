"""Running a command as a child that may crash or hang without harm to the one who waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import IO

JOINING = 5.0  # seconds for what a child has left in its pipe


def run_child(
    command: Sequence[str], seconds: float, *, stdout: IO[str] | int | None = subprocess.DEVNULL
) -> str | None:
    """Run `command` for at most `seconds`; returns why it failed, or None.

    Its stderr is passed on, and its last line is the reason; its stdout goes to `stdout`, or to
    this process's if that is None.  The child has a process group of its own, which ends with it,
    however it ends.
    """
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},  # the order of nvidia-smi
    )
    last: deque[str] = deque(maxlen=1)
    relay = Thread(target=_relay, args=(process.stderr, last), daemon=True)
    relay.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    finally:
        _end(process)
        relay.join(JOINING)
    return None if code == 0 else reason(code, last[0] if last else "")


def reason(code: int, last_line: str) -> str:
    """Why a child failed, in one line: what it said, or how it ended."""
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    return last_line.removeprefix("error: ") or f"ended with exit code {code}"


def _relay(pipe: IO[str], last: deque[str]) -> None:
    for line in pipe:
        sys.stderr.write(line)
        if line.strip():
            last.append(line.strip())


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # none is left, not even one that it started
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
