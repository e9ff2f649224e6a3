"""Opening and building the TensorRT engines of a bundle."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

from engine.backend import Backend, Engine, Request
from engine.backends.trt.build import DEFAULT_PROFILE, BuildOptions, Profile
from engine.backends.trt.key import GpuIdentity, plan_key
from engine.backends.trt.library import Library, LibraryName, load, why_missing
from engine.backends.trt.plans import RECORD, PlanSet, choose, ensure, options_before
from engine.gpu.device import Gpu, open_gpu, why_no_cuda_core
from engine.gpu.driver import why_no_gpu
from engine.verification import refuse
from export.bundle import Bundle, store_folder
from export.graphs import most_images
from lddgan.errors import BadInput, LddganError
from lddgan.files import sweep
from lddgan.names import Device, Precision
from lddgan.preset import Preset
from lddgan.progress import Log

FLOATS_FAST_FIRST: Final[tuple[Precision, ...]] = ("fp16", "fp32")
WORKSPACE_SHARE: Final = 0.5  # of the free memory, for one layer's scratch while building


class Tools(NamedTuple):
    """A TensorRT, and the GPU that it builds for and runs on."""

    library: Library
    gpu: Gpu

    @property
    def identity(self) -> GpuIdentity | None:
        """The GPU that plans are bound to. Returns None for TensorRT-RTX, which has none."""
        if self.library.name == "trt-rtx":
            return None
        return GpuIdentity(self.gpu.name, self.gpu.compute_capability)

    @property
    def workspace(self) -> int | None:
        """Bytes of scratch memory for one layer. Returns None for TensorRT-RTX."""
        if self.library.name == "trt-rtx":
            return None
        free, _ = self.gpu.memory()
        return int(free * WORKSPACE_SHARE)


def why_not(device: Device, *, name: LibraryName) -> str | None:
    """Why TensorRT cannot run. Makes none of its objects. Returns None if it can."""
    return why_no_cuda_core() or why_missing(name)


def open_tensorrt(request: Request, *, name: LibraryName) -> Backend:
    """Open the engine built nearest to the batch of a request. Builds one if there is none.

    Raises LddganError if the engine failed verification and that is not accepted, and BadInput if
    it does not take the chunk.
    """
    tools = Tools(load(name), open_gpu(request.stream))
    wanted = request.batch or request.chunk
    plans = suitable_plans(request.bundle, tools, request.precision, wanted, request.log)
    profile, verification = plans.key.profile, plans.verification()
    if verification is not None and not request.accept_failed:
        refuse(verification)
    if request.chunk is not None and not profile.holds(request.chunk):
        raise BadInput(
            f"chunk is {request.chunk}, the engine {plans.folder.name} takes {profile.min}.."
            f"{profile.max}; `lddgan build --batch` makes another"
        )
    backend = run_plans(tools, plans, request.bundle.preset, cuda_graph=request.cuda_graph)
    if request.batch is None:
        backend.prepare(request.chunk or profile.max)
    return backend


def run_plans(tools: Tools, plans: PlanSet, preset: Preset, *, cuda_graph: bool) -> Backend:
    """Load plans into a backend."""
    from engine.backends.trt.run import TrtBackend

    return TrtBackend(tools.gpu, tools.library, plans, preset, cuda_graph=cuda_graph)


def suitable_plans(
    bundle: Bundle, tools: Tools, precision: Precision, batch: int | None, log: Log
) -> PlanSet:
    """The plans built nearest to `batch`, or new ones.

    If none takes `batch` at once, those that take the largest batch of the defaults will do.  New
    ones have profile and level of those that are broken or were made elsewhere, if there are any
    that would do, else the defaults of `lddgan build`.
    """
    folder, most = store_folder(bundle), most_images(bundle.preset)
    options = BuildOptions(precision=precision, profile=DEFAULT_PROFILE.within(most))
    key = plan_key(bundle, tools.library, tools.identity, options)
    limits = (most, options.profile.max)
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


def build_engine(
    bundle: Bundle,
    precision: Precision,
    *,
    batch: str | None,
    level: int | None,
    rebuild: bool,
    log: Log,
    name: LibraryName,
) -> str:
    """Build the engine of a bundle and tune it where it can run. Returns what was built.

    `batch` is MIN,OPT,MAX. Raises LddganError if there is no GPU: TensorRT builds on the GPU that
    is to run the engine.
    """
    most = most_images(bundle.preset)
    profile = DEFAULT_PROFILE.within(most) if batch is None else Profile.parse(batch, most)
    options = BuildOptions.checked(precision=precision, profile=profile, level=level)
    plans = build_plans(bundle, name, options, rebuild=rebuild, log=log)
    seconds = sum(plans.record.seconds.values())
    return f"{plans.folder}: ready; building it took {seconds:.0f} s"


def build_plans(
    bundle: Bundle, name: LibraryName, options: BuildOptions, *, rebuild: bool, log: Log
) -> PlanSet:
    """Find or build the plans of a bundle, and tune them where they can run."""
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
    with closing(run_plans(tools, plans, bundle.preset, cuda_graph=False)) as backend:
        backend.prepare(options.profile.opt)
    return plans


def tensorrt(name: LibraryName, label: str, color: str, packages: tuple[str, ...]) -> Engine:
    """Make the record of one of the two TensorRTs."""
    return Engine(
        label=label,
        color=color,
        precisions={"cuda": FLOATS_FAST_FIRST},
        why_not=partial(why_not, name=name),
        open=partial(open_tensorrt, name=name),
        packages=packages,
        captures=True,
        build=partial(build_engine, name=name),
    )


TRT = tensorrt("trt", "TensorRT", "#2f855a", ("tensorrt", "cuda-core"))
TRT_RTX = tensorrt("trt-rtx", "TensorRT-RTX", "#22543d", ("tensorrt-rtx", "cuda-core"))
