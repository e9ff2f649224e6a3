"""Whether an engine makes PyTorch's images: measured, judged, recorded, shown.

A record is read and refused without torch; measuring needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from engine.backend import Backend, Inputs, Made
from engine.sampler import Sampler
from export.agreement import (
    IMAGES,
    LEVELS_TOLERANCE,
    SEED,
    Differences,
    Run,
    Stages,
    differences,
    joined,
    limits_of,
    passed_limit,
    run_alone,
    run_chain,
)
from export.bundle import CHECKPOINT, Bundle
from export.compare import (
    Latents,
    changed,
    grey_levels,
    is_sound,
    mean_error,
    mean_levels,
    relative_error,
)
from lddgan.errors import LddganError, OutOfMemory
from lddgan.extras import version_of
from lddgan.frozen import Frozen
from lddgan.names import Precision
from lddgan.noise import Noise, draw
from lddgan.progress import Log, Meter, to_stderr
from lddgan.torch_settings import exact_fp32

if TYPE_CHECKING:
    from rich.table import Table

    from lddgan.checkpoint import Model
    from lddgan.names import DeviceName

AT_ONCE: Final = 32  # at most: a captured CUDA graph is replayed for other images
REMEDIES: Final[dict[Precision, str]] = {
    "fp16": "use --precision fp32, or --engine fused --precision bf16",
    "bf16": "use --precision fp32",
    "fp32": "export the bundle again, or use another --engine",
    "int8": "use --precision fp32",
}


class LatentError(Frozen):
    """|difference| of latents / largest |latent| of the reference."""

    largest: float
    mean: float


class Verification(Differences):
    """An engine beside PyTorch fp32, on the same noise."""

    images: int
    seed: int
    engine: str
    precision: Precision
    where: str
    reference: str  # PyTorch, its version and device
    date: str  # ISO 8601, UTC
    calls: tuple[LatentError, ...]  # every call of the generator, on the reference's inputs
    decoder_mean: float  # grey levels
    latents: LatentError  # x_0 of the whole chain
    over_1: float  # share of the chain's uint8 values that are further off than 1 grey level
    over_2: float
    finite: bool  # no NaN or Inf, no image of one value
    noise_identical: bool  # what the engine draws is lddgan.noise, bit for bit
    drawn_levels: int  # between images of the noise it draws and of the same noise given
    why_failed: str | None

    @property
    def passed(self) -> bool:
        return self.why_failed is None


class Part(NamedTuple):
    """What both sides made of some of the images."""

    true: Run  # the reference
    alone: Run  # the engine's stages on the reference's inputs
    chain: Run  # x_0 and images of the noise given
    drawn: Run  # the same, of the noise that the engine draws
    noise_identical: bool
    code_flips: float


def verify_engine(
    sampler: Sampler,
    model: Model,
    *,
    images: int = IMAGES,
    device: str,
    at_once: int = AT_ONCE,
    exported: Differences | None = None,
    log: Log = to_stderr,
) -> Verification:
    """Compare an engine with `model` in PyTorch fp32 on `device`, on images 0..images-1 of a seed.

    `images` is rounded up to what the engine takes at least; `at_once` of them are compared in one
    go, or as many as its chunk has.  `exported` is what the export of the
    graphs measured: an int8 bundle is held to what was accepted there.  An engine that disagrees is
    a Verification that has not passed.  Raises LddganError if the reference itself makes no images,
    OutOfMemory if there is no memory for one image.
    """
    from engine.backends.pytorch import TorchBackend

    reference, least = TorchBackend(model, device), sampler.backend.least
    compare = partial(_compare, sampler, reference, model)
    images = -(-images // least) * least
    with Meter("verifying", 0, images, log, unit="images") as meter:
        parts = list(_in_parts(compare, min(at_once, sampler.chunk), least, images, meter))
    figures = _measured(parts) | _of_export(exported) | _sides(sampler.backend, reference)
    found = Verification(**figures, images=images, seed=SEED, why_failed=None)
    return found.model_copy(update={"why_failed": why_failed(found)})


def verify_bundle(
    bundle: Bundle,
    engine: str,
    precision: Precision | None,
    device: DeviceName,
    *,
    images: int = IMAGES,
    batch: int | None = None,
    cuda_graph: bool = True,
    show: Callable[[Verification], None] = lambda _: None,
    log: Log = to_stderr,
) -> Verification:
    """Verify an engine of a bundle, on its GPU if PyTorch can use it.

    `show` is given the result before it is kept beside TensorRT's plans, where another user's
    cannot be written.  The other arguments are those of `open_engine`, which says what is raised;
    also an engine that failed before is verified.
    """
    from engine.registry import open_engine

    sampler = open_engine(
        bundle,
        engine,
        precision,
        device,
        batch=batch,
        cuda_graph=cuda_graph,
        accept_failed=True,
        log=log,
    )
    return verify_opened(sampler, bundle, images=images, show=show, log=log)


def verify_opened(
    sampler: Sampler,
    bundle: Bundle,
    *,
    images: int,
    at_once: int = AT_ONCE,
    show: Callable[[Verification], None] = lambda _: None,
    log: Log = to_stderr,
) -> Verification:
    """`verify_bundle` of an engine of the bundle that is open."""
    from engine.registry import why_no_torch_cuda
    from lddgan.checkpoint import load_checkpoint

    measured = bundle.manifest.verification
    found = verify_engine(
        sampler,
        load_checkpoint(bundle.file(CHECKPOINT)),
        images=images,
        device="cpu" if sampler.backend.device == "cpu" or why_no_torch_cuda() else "cuda",
        at_once=at_once,
        exported=measured["int8"] if sampler.backend.precision == "int8" else None,
        log=log,
    )
    show(found)
    sampler.backend.keep(found)
    return found


def why_failed(found: Verification) -> str | None:
    """The first thing that is wrong and what to do about it; None if all is right."""
    if not found.noise_identical:
        return "the noise it draws is not that of lddgan.noise; use another --engine"
    wrong = None if found.finite else "it gives NaN, Inf or an image of one value"
    wrong = wrong or passed_limit(
        [
            *limits_of(found, found.precision),
            ("drawn against given noise in grey levels", found.drawn_levels, LEVELS_TOLERANCE),
        ]
    )
    return f"{wrong}; {REMEDIES[found.precision]}" if wrong else None


def refuse(found: Verification) -> None:
    """Raise LddganError for an engine that has not passed."""
    if found.why_failed is not None:
        raise LddganError(
            f"{found.engine} {found.precision} on {found.where} does not make PyTorch's images: "
            f"{found.why_failed}"
        )


def print_verification(found: Verification) -> None:
    """Write the figures and the verdict to standard output."""
    from rich.console import Console

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    console = Console()
    console.print(_table(found))
    say(f"{found.images} images of seed {found.seed} against {found.reference}, {found.date}")
    if found.why_fp32 is not None:
        say(found.why_fp32)
    if found.why_failed is None:
        say("passed", "green")
    else:
        say(f"failed: {found.why_failed}", "bold red")


def _in_parts(
    compare: Callable[[int, int], Part], most: int, least: int, images: int, meter: Meter
) -> Iterator[Part]:
    """`compare(first, count)` of all images, in parts that fit the memory, multiples of `least`."""
    at_once = max(least, most // least * least)
    while meter.done < images:
        count = min(at_once, images - meter.done)
        try:
            part = compare(meter.done, count)
        except OutOfMemory as error:
            if count == least:
                raise
            at_once = max(least, count // 2 // least * least)
            meter.log(f"{error}; going on with {at_once} images at once instead of {count}")
            continue
        yield part
        meter.advance(count)


def _compare(sampler: Sampler, reference: Backend, model: Model, first: int, count: int) -> Part:
    """Both sides on images first..first+count-1."""
    from export.verify import code_flips

    preset, backend = sampler.preset, sampler.backend
    noise = draw(preset, first, count)
    with exact_fp32():
        true = run_chain(_stages(reference), preset, noise)
    alone = run_alone(_stages(backend), preset, noise, true)
    chain = _downloaded(backend, sampler.make_from(*noise))
    identical = _is_noise(backend, sampler.inputs(SEED, first, count), noise)
    drawn = _downloaded(backend, sampler.make(SEED, first, count))
    return Part(true, alone, chain, drawn, identical, code_flips(model, chain.x_0, true.x_0))


def _stages(backend: Backend) -> Stages:
    """A backend's two graphs on arrays of the host."""
    send, fetch = backend.upload, backend.download
    return Stages(
        lambda *arrays: fetch(backend.step(*map(send, arrays))),
        lambda x_0: fetch(backend.decode(send(x_0))),
    )


def _downloaded(backend: Backend, made: Made) -> Run:
    return Run([backend.download(made.x_0)], backend.download(made.image))


def _is_noise(backend: Backend, drawn: Inputs, noise: Noise) -> bool:
    """Whether an engine drew this noise, bit for bit."""
    pairs = [(drawn.x_T, noise.x_T)]
    pairs += [*zip(drawn.z, noise.z, strict=True), *zip(drawn.noise, noise.noise, strict=True)]
    return all(backend.download(a).tobytes() == b.tobytes() for a, b in pairs)


def _sides(backend: Backend, reference: Backend) -> dict[str, Any]:
    """What is compared with what, and when."""
    return {
        "engine": backend.name,
        "precision": backend.precision,
        "where": backend.where,
        "reference": f"PyTorch {version_of('torch')} {reference.precision} on {reference.where}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _of_export(exported: Differences | None) -> dict[str, Any]:
    """What is known of int8 graphs since their export."""
    names = {"int8_accepted_psnr", "int8_both_psnr"}
    return {} if exported is None else exported.model_dump(include=names)


def _measured(parts: Sequence[Part]) -> dict[str, Any]:
    """Every figure of a Verification. Raises LddganError if the reference is not sound."""
    sides = zip(*(part[:4] for part in parts), strict=True)
    true, alone, chain, drawn = map(joined, sides)
    if not is_sound(true.x_0, true.image):
        raise LddganError("PyTorch itself gives NaN, Inf or an image of one value; check the model")
    counts = [len(part.true.image) for part in parts]
    flips = float(np.average([part.code_flips for part in parts], weights=counts))
    return differences(alone, chain, true, flips).model_dump() | {
        "calls": tuple(map(_latent_error, alone.steps, true.steps)),
        "decoder_mean": mean_levels(alone.image, true.image),
        "latents": _latent_error(chain.x_0, true.x_0),
        "over_1": changed(chain.image, true.image, 1),
        "over_2": changed(chain.image, true.image, 2),
        "finite": all(is_sound(run.x_0, run.image) for run in (alone, chain, drawn)),
        "noise_identical": all(part.noise_identical for part in parts),
        "drawn_levels": grey_levels(drawn.image, chain.image),
    }


def _latent_error(a: Latents, b: Latents) -> LatentError:
    return LatentError(largest=relative_error(a, b), mean=mean_error(a, b))


def _table(found: Verification) -> Table:
    from rich.table import Table

    table = Table(title=f"{found.engine} {found.precision} on {found.where}", title_justify="left")
    table.add_column("")
    for heading in ("largest error", "mean error", "PSNR"):
        table.add_column(heading, justify="right")
    for k, call in enumerate(found.calls, start=1):
        table.add_row(f"generator, call {k}", f"{call.largest:.1e}", f"{call.mean:.1e}")
    mean = f"{found.decoder_mean:.4f}/255"
    table.add_row("decoder", f"{found.decoder_levels}/255", mean, f"{found.decoder_psnr:.1f} dB")
    table.add_section()
    table.add_row("x_0", f"{found.latents.largest:.1e}", f"{found.latents.mean:.1e}")
    table.add_row("images", f"{found.chain_levels}/255", "", f"{found.chain_psnr:.1f} dB")
    table.add_row("values off by more than 1", f"{found.over_1:.4%}")
    table.add_row("values off by more than 2", f"{found.over_2:.4%}")
    table.add_row("VQ codes that differ", f"{found.code_flips:.4%}")
    table.add_row("drawn against given noise", f"{found.drawn_levels}/255")
    return table
