"""Facts of a machine, and commands run in a process each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.machine import (
    commit,
    gpu,
    in_words,
    machine,
    memory_mib,
    peak_memory_mib,
    run_child,
    torch_settings,
    versions,
)
from engine.gpu.driver import FirstGpu
from lddgan.errors import BadInput, LddganError
from tests.bench.rows import PAPERS_SETTINGS


def test_a_gpu_without_nvidia_smi_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.shutil.which", lambda _: None)
    monkeypatch.setattr("bench.machine.find_gpu", lambda: FirstGpu("NVIDIA H100", None))
    found = gpu()
    assert (found.name, found.temperature) == ("NVIDIA H100", None)
    assert found.driver == found.sm_clock == "unknown: nvidia-smi is missing"
    monkeypatch.setattr("bench.machine.find_gpu", lambda: FirstGpu(None, "no NVIDIA GPU"))
    with pytest.raises(LddganError, match="nvidia-smi is missing, which comes with the NVIDIA"):
        gpu()


def test_the_gpu_is_read_in_the_drivers_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "name": "NVIDIA H200",
        "driver_version": "580.95.05",
        "clocks.sm": "345 MHz",
        "clocks.max.sm": "1980 MHz",
        "clocks.mem": "3201 MHz",
        "power.draw": "76.91 W",
        "power.limit": "[N/A]",
        "temperature.gpu": "31",
    }
    monkeypatch.setattr(
        "bench.machine.ask_driver",
        lambda fields: ", ".join(values[field] for field in fields.split(",")),
    )
    found = gpu()
    assert (found.name, found.driver, found.sm_clock) == ("NVIDIA H200", "580.95.05", "345 MHz")
    assert (found.sm_clock_max, found.memory_clock) == ("1980 MHz", "3201 MHz")
    assert (found.power_draw, found.power_limit, found.temperature) == ("76.91 W", "[N/A]", "31")
    monkeypatch.setattr("bench.machine.ask_driver", lambda fields: "NVIDIA H200, 580")
    with pytest.raises(LddganError, match="gave 2 values and not 8"):
        gpu()


def test_torchs_settings_are_read_as_they_are() -> None:
    import torch

    assert torch_settings("cpu") is None
    assert torch_settings("cuda") == {
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": False,
    }
    assert in_words(PAPERS_SETTINGS) == (
        "PyTorch's fp32: TF32 on in convolutions and off in matrix products, cudnn.benchmark off, "
        "which is the paper's protocol"
    )
    other = in_words(PAPERS_SETTINGS | {"cuda.matmul.allow_tf32": True})
    assert "on in matrix products" in other and "not the paper's protocol" in other


def test_memory_machine_and_versions_are_of_this_process() -> None:
    import torch

    peak = peak_memory_mib()
    assert peak is None or 10 < peak < 1e6
    here = machine()
    assert here.cores >= 1 and here.load >= 0 and here.gpu is None
    assert versions()["torch"] == torch.__version__ and "python" in versions()


def test_memory_that_is_not_told_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr("bench.machine.STATUS", status)
    assert peak_memory_mib() is None
    status.write_text("VmRSS:\t    2048 kB\n")
    assert memory_mib("VmRSS") == 2 and peak_memory_mib() is None


def test_the_commit_is_gits_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    head = commit()
    assert head is None or len(head.removesuffix("+dirty")) == 40
    for named in ("8726293", "c" * 40 + "+dirty"):
        monkeypatch.setenv("LDDGAN_COMMIT", named)
        assert commit() == named
    for named in ("", "main", "C" * 40):
        monkeypatch.setenv("LDDGAN_COMMIT", named)
        with pytest.raises(BadInput, match=f"the commit is '{named}', and must be a hash of git"):
            commit()


# ---- Children ----


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_childs_last_words_are_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_child(python("print('fine')"), 60) is None
    said = run_child(python("import sys; sys.exit('error: too bad')"), 60)
    assert said == "too bad"
    assert "error: too bad" in capfd.readouterr().err  # passed on
    assert run_child(python("import sys; sys.exit(3)"), 60) == "ended with exit code 3"
    killed = python("import os; os.kill(os.getpid(), 9)")
    assert run_child(killed, 60) == "ended by signal 9 (SIGKILL)"


GRANDCHILD = "import sys, time; time.sleep(2); open(sys.argv[1], 'w')"
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
time.sleep(60)
"""


def test_a_childs_own_children_end_with_it(tmp_path: Path) -> None:
    left = tmp_path / "left"
    command = (*python(PARENT), GRANDCHILD, str(left))
    assert run_child(command, 1.0) == "not done within 1 s"
    command = (*python(PARENT.replace("time.sleep(60)", "sys.exit(3)")), GRANDCHILD, str(left))
    assert run_child(command, 60.0) == "ended with exit code 3"
    time.sleep(2.5)  # longer than the grandchild would take
    assert not left.exists()
