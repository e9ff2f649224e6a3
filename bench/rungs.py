"""The rungs of a ladder: ways to run one model, from PyTorch as published to the best engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.roofline import Device
from bench.timing import Side
from engine.backend import Backend
from engine.registry import BASELINE_PRECISION, open_engine
from engine.sampler import Sampler
from export.bundle import CHECKPOINT, Bundle, file_entries, graph_file
from lddgan.errors import LddganError
from lddgan.names import Precision
from lddgan.progress import Log

if TYPE_CHECKING:
    from lddgan.checkpoint import Model

EXPORTED: Final[dict[Device, Precision]] = {"cpu": "fp32", "cuda": "fp16"}  # graphs made for it
BUNDLED: Final[dict[Device, tuple[tuple[str, Precision], ...]]] = {  # what users run
    "cpu": (("ort", "fp32"), ("openvino", "fp32"), ("ort", "int8"), ("openvino", "int8")),
    "cuda": (("ort", "fp16"), ("fused", "fp16"), ("trt", "fp16")),
}
PLAIN: Final[dict[Device, tuple[str, ...]]] = {  # run exports without rewrites
    "cpu": ("openvino", "ort"),  # ONNX Runtime last: the rungs that follow are its own
    "cuda": ("trt", "ort"),
}
WHAT: Final[dict[str, str]] = {  # an engine is
    "ort": "ONNX Runtime",
    "openvino": "OpenVINO",
    "fused": "PyTorch's convolutions and Triton kernels in one CUDA graph",
    "trt": "TensorRT in one CUDA graph",
}


class Rung(NamedTuple):
    """One way to run the model; `open` raises LddganError where it cannot."""

    name: str
    adds: str  # to the rung before, or what it is
    open: Callable[[], Side]


class Workshop:
    """Where rungs are made: one bundle on one device, and a folder for graphs of their own."""

    def __init__(
        self, bundle: Bundle, device: Device, batch: int, folder: Path, log: Log = lambda _: None
    ) -> None:
        self.bundle, self.device, self.batch = bundle, device, batch
        self.folder, self.log = folder, log
        self.exported: dict[tuple[str, tuple[str, ...]], Path] = {}

    def load(self) -> Model:
        """The bundle's model, read anew: an engine may move it to its device."""
        from lddgan.checkpoint import load_checkpoint

        return load_checkpoint(self.bundle.file(CHECKPOINT))

    @cached_property
    def model(self) -> Model:
        """The model that graphs are exported from."""
        return self.load()

    def side(self, backend: Backend) -> Side:
        """A backend that is open, with its clock."""
        sampler = Sampler(
            backend,
            self.bundle.preset,
            random_weights=self.bundle.has_random_weights,
            log=self.log,
        )
        return Side(sampler, sampler.backend.timer())

    def engine(self, name: str, precision: Precision) -> Side:
        """An engine as `lddgan bench` opens it."""
        sampler = open_engine(
            self.bundle, name, precision, self.device, batch=self.batch, log=self.log
        )
        return Side(sampler, sampler.backend.timer())

    def torch(self, precision: Precision, *, compiled: bool = False, nhwc: bool = False) -> Side:
        """PyTorch in one of its ways; on a CPU too, where `lddgan bench` does not compile."""
        from engine.backends.torch.run import TorchBackend

        return self.side(
            TorchBackend(self.load(), self.device, precision, compiled=compiled, nhwc=nhwc)
        )

    def rewritten(self, rewrites: Sequence[str], engine: str = "ort") -> Side:
        """An engine on graphs exported with some rewrites. They are not verified."""
        precision = EXPORTED[self.device]
        names = ("generator", "decoder")
        paths = {which: self.graph(which, precision, rewrites) for which in names}
        # An open engine holds what it needs: graphs and TensorRT's plans go with the folder.
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            folder = Path(made)
            for which, path in paths.items():
                os.link(path, folder / graph_file(which, precision))
            files = self.bundle.manifest.model_copy(update={"files": file_entries(folder)})
            sampler = open_engine(
                Bundle(folder, files),
                engine,
                precision,
                self.device,
                batch=self.batch,
                log=self.log,
            )
        return Side(sampler, sampler.backend.timer())

    def graph(self, which: str, precision: Precision, rewrites: Sequence[str]) -> Path:
        """A graph's file; it is exported unless a rung before had the same rewrites of it."""
        key = (which, changing(which, rewrites))
        if key not in self.exported:
            path = self.folder / f"{len(self.exported)}.onnx"
            self.log(f"exporting the {which}: {', '.join(key[1]) or 'no rewrites'}")
            export_one(self.model, which, precision, rewrites, path)
            self.exported[key] = path
        return self.exported[key]


def changing(which: str, rewrites: Sequence[str]) -> tuple[str, ...]:
    """Those of some rewrites that change a graph."""
    from export.rewrites import REWRITES

    changes = {rewrite.name for rewrite in REWRITES if which in rewrite.changes}
    return tuple(name for name in rewrites if name in changes)


def export_one(
    model: Model, which: str, precision: Precision, rewrites: Sequence[str], path: Path
) -> None:
    """Write one of the two graphs. Raises LddganError if the exporter cannot."""
    import onnx
    import torch

    from export.exporter import graph_modules
    from export.fp16 import to_half
    from export.graphs import graph_specs
    from export.to_onnx import export_graph

    module = graph_modules(model, rewrites)[which]
    module = to_half(module) if precision == "fp16" else module
    try:
        export_graph(module, graph_specs(model.preset)[which], path)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise LddganError(f"the {which} could not be exported: {cause}") from error


def rungs_of(shop: Workshop) -> list[Rung]:
    """The rungs in their order; the first is the baseline."""
    return [
        *torch_rungs(shop),
        *(half_torch_rungs(shop) if shop.device == "cuda" else []),
        *rewrite_rungs(shop),
        *bundle_rungs(shop),
    ]


def torch_rungs(shop: Workshop) -> list[Rung]:
    """PyTorch in fp32."""
    return [
        Rung(
            "torch",
            "the published network, eager: the baseline",
            partial(shop.torch, BASELINE_PRECISION),
        ),
        Rung(
            "torch, channels-last",
            "channels innermost in memory",
            partial(shop.torch, BASELINE_PRECISION, nhwc=True),
        ),
        Rung(
            "torch-compile",
            "the baseline through torch.compile",
            partial(shop.torch, BASELINE_PRECISION, compiled=True),
        ),
    ]


def half_torch_rungs(shop: Workshop) -> list[Rung]:
    """PyTorch in fp16, on a GPU."""
    return [
        Rung("torch fp16", "fp16, channels-last", partial(shop.torch, "fp16")),
        Rung(
            "torch-compile fp16",
            "the same through torch.compile",
            partial(shop.torch, "fp16", compiled=True),
        ),
    ]


def rewrite_rungs(shop: Workshop) -> list[Rung]:
    """Plain exports, then ONNX Runtime with one rewrite more each."""
    from export.rewrites import REWRITES, TAKES

    precision = EXPORTED[shop.device]
    taken, what = TAKES[precision], {rewrite.name: rewrite.what for rewrite in REWRITES}
    return [
        *(
            Rung(
                f"{engine}, no rewrites",
                f"{WHAT[engine]} on the plain {precision} export",
                partial(shop.rewritten, (), engine),
            )
            for engine in PLAIN[shop.device]
        ),
        *(
            Rung(f"+ {name}", what[name], partial(shop.rewritten, taken[: number + 1]))
            for number, name in enumerate(taken)
        ),
    ]


def bundle_rungs(shop: Workshop) -> list[Rung]:
    """The bundle as it was exported, by every engine of the device."""
    return [
        Rung(
            f"{engine} {precision}, the bundle",
            f"{WHAT[engine]} on the {precision} graphs that users run",
            partial(shop.engine, engine, precision),
        )
        for engine, precision in BUNDLED[shop.device]
    ]
