"""The emoji model's images: python -m bench.studies.emoji node_modules/emoji-datasource-google OUT

The npm package emoji-datasource-google 16.0.0 holds Google's Noto emoji at 64x64 (the art is
Apache-2.0, the package MIT). Its faces, people and professions are laid over white and written as
PNG: every tenth into OUT/held-out/, the others into OUT/train/.

--halve CHECKPOINT OUT writes the trained model in float16, as it ships.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.files import refuse_used, writing

EVERY: Final = 10  # one image of so many is held out
PEOPLE: Final = ("person", "person-role", "cat-face", "monkey-face")  # beside all "face-..."
NOTICES: Final = ("LICENSE", "README.md")  # of the package; the second names the art's licence
# of the names and the bytes of all files that are taken, in their order
SHA256: Final = "eace9003a741dd28a26d83d0892e2902021ec57a02235dd6ca14e2f4b52ca4da"


def heads(package: Path) -> Iterator[Path]:
    """The files of the emoji that are taken, with all skin tones, in Unicode's order."""
    emoji = json.loads((package / "emoji.json").read_bytes())
    for one in sorted(emoji, key=lambda one: one["sort_order"]):
        if one["subcategory"] in PEOPLE or one["subcategory"].startswith("face-"):
            for variation in (one, *one.get("skin_variations", {}).values()):
                yield package / "img/google/64" / variation["image"]


def write_emoji(package: Path, out: Path) -> dict[str, int]:
    """Write both folders, the same each time. Returns the number of images in each.

    Raises BadInput if `package` is another one or `out` is not empty, LddganError if that cannot be
    written.
    """
    try:
        files = {path.name: path.read_bytes() for path in heads(package)}
    except FileNotFoundError as error:
        raise BadInput(
            f"{error.filename} does not exist; `npm install emoji-datasource-google@16.0.0` "
            "makes node_modules/emoji-datasource-google"
        ) from error
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(name.encode() + data)
    if digest.hexdigest() != SHA256:
        raise BadInput(f"{package} holds other images than emoji-datasource-google 16.0.0")
    refuse_used(out)
    written = {"train": 0, "held-out": 0}
    with writing(out):
        for part in written:
            (out / part).mkdir(parents=True, exist_ok=True)
        for name in NOTICES:
            shutil.copyfile(package / name, out / name)
        for number, (name, data) in enumerate(files.items()):
            part = "held-out" if number % EVERY == EVERY - 1 else "train"
            over_white(data).save(out / part / name)
            written[part] += 1
    return written


def over_white(png: bytes) -> Image.Image:
    """A picture with transparency -> RGB."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def halve(source: Path, target: Path) -> None:
    """Write a checkpoint with its weights in float16, half as large. Raises as its reader does."""
    require("torch", "safetensors")
    from lddgan.checkpoint import load_checkpoint, save_checkpoint

    model = load_checkpoint(source)
    model.generator.half()
    model.autoencoder.half()
    save_checkpoint(target, model)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--halve", action="store_true", help="PACKAGE is a checkpoint to halve")
    asked = parser.parse_args(arguments)
    try:
        if asked.halve:
            halve(asked.package, asked.out)
            return
        written = write_emoji(asked.package, asked.out)
    except LddganError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} images in {asked.out / part}" for part, count in written.items()))


if __name__ == "__main__":
    main()
