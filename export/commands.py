"""The commands that make bundles, and what a bundle becomes: `lddgan import`, `lddgan export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lddgan.errors import BadInput
from lddgan.extras import require
from lddgan.names import Wanted
from lddgan.options import Key, note, print_once, warn_of_random_weights
from lddgan.text import quoted

if TYPE_CHECKING:
    from export.bundle import Bundle
    from lddgan.checkpoint import Model

BundleFolder = Annotated[Path | None, typer.Option("--bundle", help="Folder of a bundle.")]
OfBundle = Annotated[
    Path | None,
    typer.Option("--bundle", help="For --web or --triton: the bundle; default as of `sample`."),
]
Page = Annotated[
    Path | None,
    typer.Option(help="Write a page that runs a bundle in the browser into this folder."),
]
Runtime = Annotated[
    Path | None, typer.Option(help="For --web: npm's onnxruntime-web, default as installed here.")
]
Repository = Annotated[
    Path | None, typer.Option(help="Write a bundle into this model repository of NVIDIA Triton's.")
]
Graphs = Annotated[
    bool, typer.Option("--triton-graphs", help="For --triton: the bare graphs as models too.")
]
TAKES: Final = {  # what `export` writes -> the options that only some of it has
    "a bundle": ("checkpoint", "out", "rewrites", "accept-psnr"),
    "--web": ("bundle", "runtime"),
    "--triton": ("bundle", "triton-graphs"),
}


def import_(
    dataset: Annotated[str, typer.Option(help="cifar10, ddgan-lsun, ... (`lddgan presets`).")],
    generator: Annotated[Path, typer.Option(help="netG_N.pth or content.pth.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="A Lightning .ckpt, or diffusers' folder; none for ddgan and wddgan."),
    ] = None,
    raw_generator: Annotated[
        bool, typer.Option(help="Take the weights of a content.pth that has no moving average.")
    ] = False,
    key: Key = None,
) -> None:
    """Read published checkpoints into one .safetensors file."""
    if out.suffix != ".safetensors" or out.is_dir():
        raise BadInput(f"--out {out} is no .safetensors file: name one, e.g. {out}.safetensors")
    if out in (generator, autoencoder):
        raise BadInput(f"--out {out} is to be read: name another file")
    require("torch", "safetensors")
    from lddgan.checkpoint import save_checkpoint
    from lddgan.published.reader import import_published

    model = import_published(dataset, generator, autoencoder, use_raw=raw_generator, keys=key or ())
    save_checkpoint(out, model)
    print_once(f"generator: taken from {model.provenance['generator']['weights']}")
    for part in ("generator", "autoencoder"):
        for prefix, count in model.provenance.get(part, {}).get("left_out", {}).items():
            print_once(f"{part}: {count} tensors under {prefix} are not needed and were left out")
    for sentence in model.provenance["notes"]:
        print_once(sentence)
    print_once(f"{out}: a {model.preset.name} model")


def export(
    dataset: Annotated[
        str | None, typer.Option(help="Which preset; a --checkpoint knows its own.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="From `import` or `train`, finished or not (.state.pt); else the shipped emoji "
            "or digits, or random weights."
        ),
    ] = None,
    precision: Annotated[
        Wanted,
        typer.Option(
            help="both: fp32 and fp16; all: int8 for CPUs too; none: for torch and fused."
        ),
    ] = "both",
    out: Annotated[Path | None, typer.Option(help="Default exports/<dataset>.")] = None,
    rewrites: Annotated[
        str | None,
        typer.Option(help="none, or names (a,b,c), instead of those that suit the engines."),
    ] = None,
    accept_psnr: Annotated[
        float | None,
        typer.Option(help="Lowest PSNR in dB at which int8 graphs are published."),
    ] = None,
    web: Page = None,
    triton: Repository = None,
    bundle: OfBundle = None,
    runtime: Runtime = None,
    triton_graphs: Graphs = False,
) -> None:
    """Export the two graphs to ONNX, compare them with PyTorch, publish the bundle.

    Or write a bundle as a page (--web) or for Triton Inference Server (--triton).
    """
    refuse_mixed(
        {"--web": web, "--triton": triton},
        {
            "checkpoint": checkpoint,
            "out": out,
            "rewrites": rewrites,
            "accept-psnr": accept_psnr,
            "bundle": bundle,
            "runtime": runtime,
            "triton-graphs": triton_graphs or None,
        },
    )
    if web is not None:
        publish_page(chosen_bundle(dataset, bundle), precision, web, runtime)
    elif triton is not None:
        publish_models(chosen_bundle(dataset, bundle), precision, triton, triton_graphs)
    else:
        publish(dataset, checkpoint, precision, out, rewrites, accept_psnr)


def refuse_mixed(folders: Mapping[str, Path | None], options: Mapping[str, object]) -> None:
    """Raise BadInput unless one thing at most is to be written, and the options given are its."""
    wanted = [name for name, folder in folders.items() if folder is not None]
    if len(wanted) > 1:
        raise BadInput(f"{' and '.join(wanted)} write two things; give one")
    target = wanted[0] if wanted else "a bundle"
    for name, value in options.items():
        if value is not None and name not in TAKES[target]:
            takers = [one for one in folders if name in TAKES[one]]
            told = f"not for {target}" if wanted else f"for {' or '.join(takers)}"
            raise BadInput(f"--{name} is {told}; leave it out")


def publish(
    dataset: str | None,
    checkpoint: Path | None,
    precision: Wanted,
    out: Path | None,
    rewrites: str | None,
    accept_psnr: float | None,
) -> None:
    """Export a model as a bundle, and tell how its graphs agree with PyTorch."""
    exporters = () if precision == "none" else ("onnx", "onnxscript", "onnxruntime")
    require("torch", "safetensors", *exporters)
    from export.bundle import EXPORTS
    from export.exporter import export_bundle, model_to_export
    from export.graphs import precisions_of
    from export.rewrites import TAKES
    from lddgan.names import PRECISIONS

    model, source = model_to_export(dataset, checkpoint)
    if model.has_random_weights:
        warn_of_random_weights()
    note_unfinished(model, checkpoint)
    folder = out or EXPORTS / model.preset.name
    names = () if rewrites in (None, "none") else tuple(str(rewrites).split(","))
    asked = TAKES if rewrites is None else dict.fromkeys(PRECISIONS, names)
    measured = export_bundle(
        model,
        folder,
        precisions_of(precision),
        checkpoint=source,
        rewrites=asked,
        accept_psnr=accept_psnr,
        log=note,
    )
    for name, found in measured.items():
        print_once(f"{name}: {found.summary()}")
    without = "" if measured else " without graphs, for --engine torch and fused"
    print_once(f"{folder}: published{without}; use it with --bundle {quoted(folder)}")


def publish_page(bundle: Bundle, precision: Wanted, folder: Path, runtime: Path | None) -> None:
    """Write the page of a bundle, and tell how to look at it."""
    require("onnx")
    from export.web.folder import INSTALLED, write_web

    sizes = write_web(bundle, folder, runtime or INSTALLED, precision)
    served = f"python -m http.server --directory {quoted(folder)}"
    print_once(f"{folder}: {sum(sizes.values()) / 1e6:.1f} MB; look at it with `{served}`")


def publish_models(bundle: Bundle, precision: Wanted, folder: Path, graphs: bool) -> None:
    """Write a bundle into a model repository of Triton's, and tell how to serve it."""
    from export.triton.repository import write_repository

    sizes = write_repository(bundle, folder, precision, graphs=graphs)
    told = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    served = f"tritonserver --model-repository={quoted(folder)}"
    print_once(f"{folder}: {told}; serve it with `{served}`")


def note_unfinished(model: Model, checkpoint: Path | None) -> None:
    """Tell if the training that `checkpoint` is of had not ended."""
    if "unfinished" in model.provenance:
        note(f"{checkpoint}: unfinished, after {model.provenance['steps']:,} steps")


def chosen_bundle(dataset: str | None, folder: Path | None) -> Bundle:
    """Open the bundle of --dataset or --bundle, or the default one, which is told."""
    from export.bundle import find_bundle, open_bundle

    if dataset is not None and folder is not None:
        raise BadInput("--dataset and --bundle name two bundles; give one")
    found = folder or find_bundle(dataset)
    opened = open_bundle(found)
    if dataset is None and folder is None:
        note(f"using the bundle {found}")
    if opened.has_random_weights:
        warn_of_random_weights()
    if not opened.precisions:
        note(f"{found} holds no graphs: torch and fused run it; `lddgan export` adds them")
    return opened
