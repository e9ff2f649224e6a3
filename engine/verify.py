"""Measuring whether an engine makes PyTorch's images. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from engine.backend import Backend, Inputs, Made
from engine.registry import BASELINE, BASELINE_PRECISION, open_engine, open_model
from engine.requirements import why_no_torch_cuda
from engine.sampler import Sampler
from engine.verification import LatentError, Verification, why_failed
from export.agreement import (
    IMAGES,
    SEED,
    Differences,
    Latents,
    Run,
    Runner,
    changed,
    differences,
    grey_levels,
    is_sound,
    joined,
    mean_error,
    mean_levels,
    relative_error,
    run_alone,
    run_chain,
)
from export.bundle import CHECKPOINT, Bundle
from lddgan.errors import LddganError
from lddgan.extras import version_of
from lddgan.names import Device, Precision
from lddgan.noise import Noise, draw
from lddgan.preset import Preset
from lddgan.progress import Log, Meter, to_stderr

if TYPE_CHECKING:
    from rich.table import Table

    from lddgan.checkpoint import Model
    from lddgan.names import DeviceName

AT_ONCE: Final = 32  # at most: a captured CUDA graph is replayed for other images


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
    device: Device,
    at_once: int = AT_ONCE,
    exported: Differences | None = None,
    log: Log = to_stderr,
) -> Verification:
    """Compare an engine with `model` in PyTorch fp32 on `device`, on the first images of a seed.

    `images` is rounded up to what the engine takes at least; at most `at_once`, or the engine's
    chunk, are compared at a time. `exported` is what the export of the graphs measured: an int8
    bundle is held to what was accepted there.

    Returns a Verification that has not passed if the engine disagrees. Raises LddganError if
    PyTorch itself makes no images, OutOfMemory if there is no memory for one image.
    """
    reference, least = (
        open_model(model, BASELINE, BASELINE_PRECISION, device).backend,
        sampler.backend.least,
    )
    images = -(-images // least) * least
    parts = []
    with Meter("verifying", 0, images, log, unit="images") as meter:
        compare = partial(_compare, sampler, reference, model)
        for part in sampler.in_parts(images, compare, max(least, min(at_once, sampler.chunk))):
            parts.append(part)
            meter.advance(len(part.true.image))
    figures = (
        _measured(parts, model.preset) | _of_export(exported) | _sides(sampler.backend, reference)
    )
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
    """Open an engine of a bundle and verify it, on the GPU if PyTorch can use it.

    `show` gets the result before it is stored beside TensorRT's plans, which may belong to another
    user. The other arguments are those of `open_engine`; an engine that failed before is verified
    again.
    """
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
    """Verify an open engine of the bundle."""
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


def print_verification(found: Verification) -> None:
    """Print the figures and the verdict."""
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


def _compare(sampler: Sampler, reference: Backend, model: Model, first: int, count: int) -> Part:
    """Run both sides on images first..first+count-1."""
    from export.verify import code_flips
    from lddgan.torch_settings import exact_fp32

    preset, backend = sampler.preset, sampler.backend
    noise = draw(preset, first, count, SEED)
    with exact_fp32():
        true = run_chain(_runner(reference), noise)
    alone = run_alone(_runner(backend), noise, true)
    chain = _downloaded(backend, sampler.make_from(*noise))
    identical = _is_noise(backend, sampler.inputs(SEED, first, count), noise)
    drawn = _downloaded(backend, sampler.make(SEED, first, count))
    return Part(true, alone, chain, drawn, identical, code_flips(model, chain.x_0, true.x_0))


def _runner(backend: Backend) -> Runner:
    """A backend's two graphs, as functions of host arrays."""
    send, fetch = backend.upload, backend.download

    def step(x: Latents, t: int, z: Any, noise: Latents) -> Latents:
        return fetch(backend.step(send(x), send(np.array([t], np.int32)), send(z), send(noise)))

    return Runner(step, lambda x_0: fetch(backend.decode(send(x_0))))


def _downloaded(backend: Backend, made: Made) -> Run:
    return Run([backend.download(made.x_0)], backend.download(made.image))


def _is_noise(backend: Backend, drawn: Inputs, noise: Noise) -> bool:
    """Whether the engine drew this noise, bit for bit."""
    pairs = [(drawn.x_T, noise.x_T)]
    pairs += [*zip(drawn.z, noise.z, strict=True), *zip(drawn.noise, noise.noise, strict=True)]
    return all(backend.download(a).tobytes() == b.tobytes() for a, b in pairs)


def _sides(backend: Backend, reference: Backend) -> dict[str, Any]:
    """Name the two sides, and the date."""
    return {
        "engine": backend.name,
        "precision": backend.precision,
        "where": backend.where,
        "reference": f"PyTorch {version_of('torch')} {reference.precision} on {reference.where}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _of_export(exported: Differences | None) -> dict[str, Any]:
    """What the export recorded about int8 graphs."""
    names = {"int8_accepted_psnr", "int8_both_psnr"}
    return {} if exported is None else exported.model_dump(include=names)


def _measured(parts: Sequence[Part], preset: Preset) -> dict[str, Any]:
    """Compute every figure of a Verification. Raises LddganError if the reference is not sound."""
    sides = zip(*(part[:4] for part in parts), strict=True)
    true, alone, chain, drawn = map(joined, sides)
    if not is_sound(true.x_0, true.image, preset):
        raise LddganError("PyTorch itself gives NaN, Inf or an image of one value; check the model")
    counts = [len(part.true.image) for part in parts]
    flips = float(np.average([part.code_flips for part in parts], weights=counts))
    return differences(alone, chain, true, flips).model_dump() | {
        "calls": tuple(map(_latent_error, alone.steps, true.steps)),
        "decoder_mean": mean_levels(alone.image, true.image),
        "latents": _latent_error(chain.x_0, true.x_0),
        "over_1": changed(chain.image, true.image, 1),
        "over_2": changed(chain.image, true.image, 2),
        "finite": all(is_sound(run.x_0, run.image, preset) for run in (alone, chain, drawn)),
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
