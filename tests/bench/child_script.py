"""A stand-in for lddgan's command line, run as a child: it writes rows and no more.

What it is told to do lies in plan.json beside the file that rows are saved to: for each command
(its words joined) what happens; and every call is noted in calls.txt there.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.verification import LatentError, Verification
from export.bundle import DIGITS


def main(words: list[str], here: Path) -> int:
    with (here / "calls.txt").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    told = json.loads((here / "plan.json").read_text())
    what = next((do for part, do in told.items() if part in " ".join(words)), None)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what is not None and what.startswith("error"):
        print("some progress\n" + what, file=sys.stderr)
        return 1
    if words[0] == "export":
        write_manifest(Path("exports") / words[words.index("--dataset") + 1])
    if words[0] == "verify":
        print(f"some progress\n{verified(what).model_dump_json()}")
    if what == "refused":
        print(what, file=sys.stderr)
        return 1
    if words[0] == "bench" and "--ladder" not in words and what != "nothing":
        write_row(words)
    return 0


def write_manifest(folder: Path, precisions: Sequence[str] = ("fp32", "fp16")) -> None:
    """The manifest of the digits as that of a bundle in some precisions."""
    manifest = json.loads((DIGITS / "manifest.json").read_text())
    measured = manifest["verification"]["fp32"]
    manifest["verification"] = dict.fromkeys(precisions, measured)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def verified(why_failed: str | None) -> Verification:
    """Figures of equal images."""
    none = LatentError(largest=0, mean=0)
    return Verification(
        generator_error=0,
        decoder_levels=0,
        decoder_changed=0,
        decoder_psnr=math.inf,
        chain_error=0,
        chain_levels=0,
        chain_changed=0,
        chain_psnr=math.inf,
        code_flips=0,
        images=64,
        seed=0,
        engine="scripted",
        precision="fp16",
        where="nowhere",
        reference="PyTorch",
        date="2025-01-01T00:00:00+00:00",
        calls=(none,),
        decoder_mean=0,
        latents=none,
        over_1=0,
        over_2=0,
        finite=True,
        noise_identical=True,
        drawn_levels=0,
        why_failed=why_failed,
    )


def write_row(words: list[str]) -> None:
    from bench.machine import Gpu, Machine, versions
    from bench.row import save_row
    from tests.bench.test_results import measured, row

    def given(option: str) -> str:
        return words[words.index(option) + 1]

    captures = given("--engine") in ("trt", "fused")
    one = measured(
        given("--engine"),
        100.0,
        cuda_graph=captures and "--no-cuda-graph" not in words,
    ).model_copy(update={"precision": given("--precision")})
    gpu = Gpu(name="NVIDIA H200", driver="580", sm_clock="", power_limit="")
    made = row(
        date="2025-01-01T00:00:00+00:00",
        commit=os.environ["SCRIPT_COMMIT"],
        dataset=given("--dataset"),
        device="cuda",
        batch=int(given("--batch")),
        trials_asked=int(given("--trials")),
        engine=one,
        machine=Machine(cpu="A CPU", cores=2, load=0, gpu=gpu),
        versions=versions(),
        notes=("from the script",),
    )
    save_row(made, Path(given("--save")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(os.environ["SCRIPT_FOLDER"])))
