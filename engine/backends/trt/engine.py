"""Opening and building the TensorRT engines of a bundle."""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.backends.trt.build import BuildOptions
from engine.backends.trt.library import Library, LibraryName, load
from engine.backends.trt.plans import (
    RECORD,
    GpuIdentity,
    PlanSet,
    choose,
    ensure,
    options_before,
    plan_key,
)
from engine.backends.trt.run import TrtBackend
from engine.gpu.device import Gpu, open_gpu
from engine.gpu.driver import why_no_gpu
from engine.sampler import Sampler, equal_parts
from engine.verification import Verification, refuse
from export.bundle import Bundle, store_folder
from export.graphs import MAX_BATCH, graph_specs
from lddgan.errors import BadInput, LddganError
from lddgan.files import sweep
from lddgan.names import Precision
from lddgan.progress import Log

WORKSPACE_SHARE: Final = 0.5  # of the free memory, for one layer's scratch while building


class Tools(NamedTuple):
    """A TensorRT and the GPU that it builds for and runs on."""

    library: Library
    gpu: Gpu

    @property
    def identity(self) -> GpuIdentity | None:
        """Of the plans; None for TensorRT-RTX, whose plans run on any GPU that it supports."""
        if self.library.name == "trt-rtx":
            return None
        return GpuIdentity(self.gpu.name, self.gpu.compute_capability)

    @property
    def workspace(self) -> int | None:
        """Bytes for one layer's scratch; None for TensorRT-RTX, whose plans are of no one GPU."""
        if self.library.name == "trt-rtx":
            return None
        free, _ = self.gpu.memory()
        return int(free * WORKSPACE_SHARE)


def open_tensorrt(
    bundle: Bundle,
    name: LibraryName,
    precision: Precision,
    chunk: int | None,
    *,
    batch: int | None,
    cuda_graph: bool,
    stream: object | None,
    accept_failed: bool,
    log: Log,
) -> Sampler:
    """A sampler on the built engine that suits `batch`; builds one if there is none.

    Only where a GPU is known to be.  Raises LddganError for an engine that failed verification,
    unless `accept_failed`.
    """
    tools = Tools(load(name), open_gpu(stream))
    plans = suitable_plans(bundle, tools, precision, batch or chunk, log)
    verification = plans.verification(Verification)
    if verification is not None and not accept_failed:
        refuse(verification)
    sampler = open_plans(bundle, tools, plans, chunk, cuda_graph=cuda_graph, log=log)
    at_once = equal_parts(batch or sampler.chunk, sampler.chunk)[0]
    tune(sampler, max(at_once, plans.key.profile.min))  # a CUDA graph is padded to that
    return sampler


def suitable_plans(
    bundle: Bundle, tools: Tools, precision: Precision, batch: int | None, log: Log
) -> PlanSet:
    """The plans built nearest to `batch`, or new ones.

    If none takes `batch` at once, those that take the largest batch of the defaults will do.  New
    ones have profile and level of those that are broken or were made elsewhere, if there are any
    that would do, else the defaults of `lddgan build`.
    """
    folder, options = store_folder(bundle), BuildOptions(precision=precision)
    key = plan_key(bundle, tools.library, tools.identity, options)
    limits = (MAX_BATCH, options.profile.max)
    batches = [None] if batch is None else [min(batch, limit) for limit in limits]
    sweep(folder, RECORD)
    found = choose(folder, key, batches, log)
    if found is not None:
        return found
    before = options_before(folder, key, batches)
    if before is not None:
        log(f"building for batches {before.profile} at level {before.level}, as it was before")
    return ensure(
        bundle,
        tools.library,
        tools.identity,
        before or options,
        log=log,
        looked=True,
        workspace=tools.workspace,
    )


def open_plans(
    bundle: Bundle,
    tools: Tools,
    plans: PlanSet,
    chunk: int | None,
    *,
    cuda_graph: bool,
    log: Log,
) -> Sampler:
    """A sampler on plans. Raises BadInput for a chunk that their profile does not hold."""
    profile = plans.key.profile
    if chunk is not None and not profile.holds(chunk):
        raise BadInput(
            f"chunk is {chunk}, the engine {plans.folder.name} takes {profile.min}..{profile.max}; "
            "`lddgan build --batch` makes another"
        )
    backend = TrtBackend(
        tools.gpu, tools.library, plans, graph_specs(bundle.preset), cuda_graph=cuda_graph
    )
    return Sampler(
        backend,
        bundle.preset,
        random_weights=bundle.has_random_weights,
        chunk=chunk or profile.max,
        log=log,
    )


def tune(sampler: Sampler, batch: int) -> None:
    """Find the decoder's chunk at `batch`, unless it is known. It is kept beside the plans."""
    backend = sampler.backend
    if isinstance(backend, TrtBackend) and batch not in backend.plans.tuning:
        chunk = backend.tune(batch)
        sampler.log(f"the decoder is fastest with {chunk} images at once at batch {batch}")


def build_engine(
    bundle: Bundle, name: LibraryName, options: BuildOptions, *, rebuild: bool, log: Log
) -> PlanSet:
    """Build the engine of a bundle, and tune it where it can run.

    Raises LddganError where it cannot be built: TensorRT needs the GPU that it builds for.
    """
    if name == "trt-rtx":
        return ensure(bundle, load(name), None, options, log=log, rebuild=rebuild)
    cause = why_no_gpu()
    if cause is not None:
        raise LddganError(
            f"TensorRT builds on the GPU that is to run the engine, and here is {cause}; "
            "`lddgan build --engine trt-rtx` can build engines for GeForce RTX cards without one"
        )
    tools = Tools(load(name), open_gpu())
    plans = ensure(
        bundle,
        tools.library,
        tools.identity,
        options,
        log=log,
        rebuild=rebuild,
        workspace=tools.workspace,
    )
    tune(open_plans(bundle, tools, plans, None, cuda_graph=False, log=log), options.profile.opt)
    return plans
