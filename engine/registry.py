"""The engines, best first: which of them run here, and opening one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from engine.gpu.driver import why_no_gpu
from lddgan.errors import BadInput, LddganError
from lddgan.names import PRECISIONS, Device, DeviceName, Precision

if TYPE_CHECKING:
    from engine.backend import Engine, Request
    from engine.sampler import Sampler
    from export.bundle import Bundle
    from lddgan.checkpoint import Model
    from lddgan.preset import Preset
    from lddgan.progress import Log

ENGINES: Final[dict[str, str]] = {  # name -> its record: module, relative to this folder, and name
    "trt": ".backends.trt.engine:TRT",
    "trt-rtx": ".backends.trt.engine:TRT_RTX",
    "fused": ".backends.fused.engine:ENGINE",
    "openvino": ".backends.openvino:ENGINE",
    "ort": ".backends.ort:ENGINE",
    "torch": ".backends.torch.engine:ENGINE",
    "torch-compile": ".backends.torch.engine:COMPILED",
}
DEVICES: Final[tuple[Device, ...]] = ("cuda", "cpu")  # best first
BASELINE: Final = "torch"
BASELINE_PRECISION: Final[Precision] = "fp32"  # of the networks as published


class Candidate(NamedTuple):
    """One engine on one device; `why_not` is None where it runs."""

    engine: str
    device: Device
    why_not: str | None


class Chosen(NamedTuple):
    """What a request comes to on this machine."""

    engine: str
    device: Device
    precision: Precision


def find_engine(name: str) -> Engine:
    """Import the record of an engine, not its library. Raises BadInput for an unknown name."""
    if name not in ENGINES:
        raise BadInput(f"there is no engine '{name}'; --engine is auto or {', '.join(ENGINES)}")
    module, _, record = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module, __package__), record)
    return engine


def open_engine(
    bundle: str | os.PathLike[str] | Bundle,
    engine: str = "auto",
    precision: Precision | None = None,
    device: DeviceName = "auto",
    chunk: int | None = None,
    *,
    batch: int | None = None,
    cuda_graph: bool = True,
    stream: object | None = None,
    accept_failed: bool = False,
    log: Log | None = None,
) -> Sampler:
    """Open a bundle with an engine.

    `auto` picks the best engine and device that work here; `Sampler.description` says which.
    Without a `precision` it is the engine's first that the bundle has.

    Engines get ready for `batch` images: OpenVINO compiles, TensorRT and fused tune.  TensorRT
    takes the engine built nearest to `batch`, or builds one, which takes minutes and is said to
    `log` (default: stderr); one that failed `lddgan verify` is refused unless `accept_failed`.
    Where a CUDA graph is captured, `cuda_graph` False launches the same steps one by one, and
    `stream` (of torch, cuda-core or PyCUDA, or a handle) is where everything runs.

    There is no fallback.  Raises BadInput for a bundle that cannot be read, LddganError for an
    engine that cannot run, with the cause and what mends it.
    """
    from engine.backend import Request
    from export.bundle import Bundle, open_bundle
    from lddgan.progress import to_stderr

    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision, opened.precisions, opened.preset)
    asked = (chunk, batch, cuda_graph, stream, accept_failed, log or to_stderr)
    return _open(chosen.engine, Request(opened, chosen.device, chosen.precision, *asked))


def open_model(
    model: Model,
    engine: str = BASELINE,
    precision: Precision | None = None,
    device: DeviceName = "auto",
    chunk: int | None = None,
    *,
    batch: int | None = None,
    cuda_graph: bool = True,
    stream: object | None = None,
    log: Log | None = None,
) -> Sampler:
    """Open a model that is in no bundle with an engine that needs no graphs.

    The engine leaves the model as it is.  Everything else as in `open_engine`.
    """
    from engine.backend import Request
    from lddgan.progress import to_stderr

    runs_models = [name for name in ENGINES if not find_engine(name).needs_graphs]
    if engine not in runs_models:
        raise BadInput(
            f"a model without graphs is run by {', '.join(runs_models)}, not by {engine}"
        )
    chosen = choose(engine, device, precision, (), model.preset)
    asked = (chunk, batch, cuda_graph, stream, False, log or to_stderr)
    return _open(chosen.engine, Request(model, chosen.device, chosen.precision, *asked))


def _open(engine: str, request: Request) -> Sampler:
    from engine.sampler import Sampler, equal_parts

    record, source = find_engine(engine), request.source
    if not record.captures and (request.stream is not None or not request.cuda_graph):
        raise BadInput(f"the {engine} engine takes no stream and captures no CUDA graph")
    with ExitStack() as on_failure:
        backend = record.open(request)
        on_failure.callback(backend.close)
        sampler = Sampler(
            backend,
            source.preset,
            random_weights=source.has_random_weights,
            chunk=request.chunk,
            log=request.log,
        )
        if request.batch is not None:
            backend.prepare(equal_parts(request.batch, sampler.chunk)[0])
        on_failure.pop_all()  # it is open; whoever has it closes it
        return sampler


def choose(
    engine: str,
    device: DeviceName,
    precision: Precision | None = None,
    held: Sequence[Precision] = PRECISIONS,
    preset: Preset | None = None,
) -> Chosen:
    """The first candidate that fits the request and can run.

    `held` are the precisions of the bundle: `auto` passes over engines that would need another.
    `preset` is its model: the order depends on it.
    Raises LddganError with the causes, BadInput for a precision where it never runs.
    """
    if device not in get_args(DeviceName):
        raise BadInput(f"device is {device}, and is one of {', '.join(get_args(DeviceName))}")
    check_precision(precision, engine, device)
    hindered: dict[str, list[str]] = {}  # cause -> where it holds
    for candidate in survey(engine, device, preset):
        record = find_engine(candidate.engine)
        wanted = precision or default_precision(candidate.engine, candidate.device, held)
        if wanted not in record.precisions[candidate.device]:
            continue
        if engine == "auto" and record.needs_graphs and wanted not in held:
            continue
        if candidate.why_not is None:
            return Chosen(candidate.engine, candidate.device, wanted)
        where = f"{candidate.engine} on {candidate.device}"
        hindered.setdefault(candidate.why_not, []).append(where)
    causes = [f"{', '.join(where)}: {cause}" for cause, where in hindered.items()]
    if not causes and engine != "auto":
        causes = [f"the {engine} engine does not run on {device}"]
    elif not causes:
        from export.bundle import in_words

        what = "nothing runs" if precision is None else f"nothing runs {precision}"
        causes = [f"{what} on {device}, the bundle holds {in_words(held)}"]
    raise LddganError(f"{'; '.join(causes)}; `lddgan doctor` says what runs here")


def check_precision(precision: Precision | None, engine: str, device: DeviceName = "auto") -> None:
    """Raise BadInput if no engine and device of a request ever run a precision."""
    found = pairs(engine, device)
    if precision is None or not found:
        return
    if any(precision in find_engine(name).precisions[where] for name, where in found):
        return
    places = []
    for where in DEVICES:
        names = [name for name, _ in pairs(device=where)]
        names = [name for name in names if precision in find_engine(name).precisions[where]]
        places += [f"--engine {' or '.join(names)} on --device {where}"] if names else []
    raise BadInput(f"{precision} runs with {', and '.join(places)} only")


def default_precision(engine: str, device: Device, held: Sequence[Precision]) -> Precision:
    """What an engine runs of a bundle that holds the precisions `held`, unless asked."""
    record = find_engine(engine)
    preferred = record.precisions[device]
    if record.default is not None:
        return record.default
    return next((one for one in preferred if one in held), preferred[0])


def pairs(
    engine: str = "auto", device: DeviceName = "auto", preset: Preset | None = None
) -> list[tuple[str, Device]]:
    """The engines and devices that a request names, best first (for a model)."""
    if engine != "auto":
        find_engine(engine)  # raises for an unknown one
    found: list[tuple[str, Device]] = []
    for where in (where for where in DEVICES if device in ("auto", where)):
        names = [name for name in ENGINES if engine in ("auto", name)]
        names = [name for name in names if where in find_engine(name).precisions]
        if preset is not None:
            names.sort(key=lambda name: not find_engine(name).suits(preset, where))
        found += [(name, where) for name in names]
    return found


def survey(
    engine: str = "auto", device: DeviceName = "auto", preset: Preset | None = None
) -> Iterator[Candidate]:
    """`pairs`, and why each cannot run (a model) here.

    The library of an engine is imported when its turn comes: who stops early loads no more.
    """
    for name, where in pairs(engine, device, preset):
        record = find_engine(name)
        why_not = None if preset is None else record.why_not_model(preset)
        if why_not is None and where == "cuda":
            why_not = why_no_gpu()
        yield Candidate(name, where, why_not or record.why_not(where))
