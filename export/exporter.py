"""A checkpoint -> a verified bundle."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from export.agreement import limits_of, passed_limit
from export.bundle import (
    CHECKPOINT,
    MANIFEST,
    SCHEMA,
    SHIPPED,
    Agreement,
    Manifest,
    file_entries,
    graph_file,
    open_bundle,
    publishing,
)
from export.fp16 import to_half
from export.graphs import graph_specs, most_images
from export.modules import DecoderToImage, GeneratorStep
from export.rewrites import TAKES, Graphs, rewritten
from export.verify import check_half, onnx_runner, refuse_disagreement, verify
from lddgan.checkpoint import Model, random_model, save_checkpoint
from lddgan.errors import BadInput
from lddgan.extras import version_of
from lddgan.names import Precision
from lddgan.presets import get_preset
from lddgan.progress import Log
from lddgan.text import in_json
from lddgan.training.run_folder import STATE, load_model

EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime")


def export_bundle(
    model: Model,
    folder: Path,
    precisions: Sequence[Precision],
    *,
    checkpoint: Path | None = None,
    rewrites: Mapping[Precision, Sequence[str]] = TAKES,
    accept_psnr: float | None = None,
    log: Log = lambda _: None,
) -> dict[Precision, Agreement]:
    """Export, verify and publish `model` as the bundle `folder`; returns what was measured.

    Without `precisions` the bundle is a checkpoint and its manifest, which needs no onnx.
    `checkpoint` is the file that holds `model`: it is hard-linked instead of written again.
    `accept_psnr` is the lowest PSNR in dB of int8 images, instead of INT8_PSNR.
    Raises LddganError if the graphs disagree with PyTorch, leaving `folder` as it was, and BadInput
    for unknown rewrites.
    """
    refuse_loss(model, folder)
    with publishing(folder) as temporary:
        place_checkpoint(model, checkpoint, temporary / CHECKPOINT)

        # ONNX graphs, each precision compared with PyTorch
        measured: dict[Precision, Agreement] = {}
        for precision in precisions:
            log(f"{precision}: exporting the two graphs, comparing ONNX Runtime with PyTorch")
            if precision == "int8":
                found = export_int8(model, temporary, rewrites[precision], accept_psnr, log)
            else:
                half = export_graphs(model, temporary, precision, rewrites[precision])
                found = verify(model, temporary, precision, **half)
            refuse_disagreement(found, precision)
            measured[precision] = found

        # the manifest, which lists every file by now
        manifest = Manifest(
            schema_version=SCHEMA,
            preset=model.preset,
            provenance=in_json(model.provenance),
            files=file_entries(temporary),
            graphs=graph_specs(model.preset),
            exporter={name: version for name in EXPORTERS if (version := version_of(name))},
            rewrites={precision: tuple(rewrites[precision]) for precision in precisions},
            verification=measured,
        )
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return measured


def refuse_loss(model: Model, folder: Path) -> None:
    """Raise BadInput if random weights would replace a trained model."""
    replaces = model.has_random_weights and (folder / MANIFEST).is_file()
    if replaces and not open_bundle(folder).has_random_weights:
        raise BadInput(
            f"{folder} holds a trained model, and random weights do not replace it; name its "
            "--checkpoint, or another --out"
        )


def model_to_export(dataset: str | None, checkpoint: Path | None) -> tuple[Model, Path | None]:
    """Load the model to export; returns it and its file, None if there is no checkpoint of it.

    A training's state holds a model too: its moving average.  Without a checkpoint `emoji` and
    `digits` are the shipped models, and other data sets get random weights.  Raises BadInput if the
    checkpoint belongs to another data set, or neither is given.
    """
    if checkpoint is None and dataset in SHIPPED:
        checkpoint = SHIPPED[dataset] / CHECKPOINT
    if checkpoint is None:
        if dataset is None:
            raise BadInput("name a --dataset or a --checkpoint")
        return random_model(get_preset(dataset)), None
    model = load_model(checkpoint)
    if dataset is not None and dataset != model.preset.name:
        raise BadInput(f"{checkpoint} is a {model.preset.name} model; you asked for {dataset}")
    return model, None if checkpoint.name.endswith(STATE) else checkpoint


def place_checkpoint(model: Model, source: Path | None, target: Path) -> None:
    """Put the checkpoint into the bundle: as a hard link, else a copy; written without `source`."""
    if source is None:
        save_checkpoint(target, model)
        return
    try:
        os.link(source.resolve(), target)  # a link to a symbolic link would dangle
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def export_graphs(
    model: Model, folder: Path, precision: Precision, rewrites: Sequence[str]
) -> dict[str, float]:
    """Write both graphs in fp32 or fp16; for fp16 returns what `check_half` does."""
    modules = graph_modules(model, rewrites)
    half = {}
    if precision == "fp16":
        modules = {which: to_half(module) for which, module in modules.items()}
        half = check_half(model, modules)
    from export.to_onnx import export_graph

    for which, spec in graph_specs(model.preset).items():
        path = folder / graph_file(which, precision)
        export_graph(modules[which], spec, path, most_images(model.preset))
    return half


def export_int8(
    model: Model, folder: Path, rewrites: Sequence[str], accept_psnr: float | None, log: Log
) -> Agreement:
    """Write both graphs in int8, made of temporary fp32 graphs; returns what was measured.

    If their images miss the limit of int8, the generator of a KL model stays in fp32.
    """
    from export.int8 import keep, quantise_graphs

    with tempfile.TemporaryDirectory() as name:
        floats = Path(name)
        export_graphs(model, floats, "fp32", rewrites)
        quantise_graphs(model.preset, onnx_runner(floats, "fp32"), floats, folder, log)
        both = verify(model, folder, "int8", int8_accepted_psnr=accept_psnr)
        if model.preset.autoencoder.has_codes or passed_limit(limits_of(both, "int8")) is None:
            return both
        keep("generator", floats, folder)
        known = {"int8_accepted_psnr": accept_psnr, "int8_both_psnr": both.chain_psnr}
        found = verify(model, folder, "int8", **known)
        log(f"int8: {found.why_fp32}, now {found.chain_psnr:.1f} dB")
        return found


def graph_modules(model: Model, rewrites: Sequence[str]) -> dict[str, nn.Module]:
    """Copy the networks as the two graphs compute them. Raises BadInput for unknown rewrites."""
    generator, autoencoder = copy.deepcopy((model.generator, model.autoencoder))
    graphs = Graphs(
        GeneratorStep(generator, model.preset).eval(),
        DecoderToImage(autoencoder, model.preset).eval(),
        model.preset,
    )
    rewritten(graphs, rewrites)
    return {"generator": graphs.generator, "decoder": graphs.decoder}
