"""How long an image takes in a browser: python -m bench.studies.web PAGE --count 32

PAGE is a folder of `lddgan export --web`, its bundle one that `lddgan sample --dataset` finds.  The
same images, one at a time, by ONNX Runtime in Python, the page's runtime in Node, and the page in
Chromium: medians.  Needs Node, Chromium and playwright (`make .venv/.web`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from statistics import median
from time import perf_counter
from typing import Any, Final

from bench.machine import machine
from engine.registry import open_engine
from export.bundle import find_bundle
from lddgan.errors import LddganError

FLAGS: Final = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")

NODE: Final = """
import { readFileSync } from "node:fs";
const [, , address, count] = process.argv;
const page = (name) => new URL(name, address);
const ort = await import(page("ort/ort.wasm.bundle.min.mjs"));
const { Sampler } = await import(page("sampler.mjs"));
ort.env.wasm.wasmBinary = readFileSync(page("ort/ort-wasm-simd-threaded.wasm"));
ort.env.wasm.numThreads = 1;
const session = (name) => ort.InferenceSession.create(readFileSync(page(name)));
const model = JSON.parse(readFileSync(page("model.json")));
const graphs = [await session("generator.onnx"), await session("decoder.onnx")];
const sampler = new Sampler(ort, model, ...graphs);
for (let index = 0n; index < count; index++) {
  const start = performance.now();
  await sampler.sample(0n, index, 1);
  console.log(performance.now() - start);
}
"""


def in_python(model: dict[str, Any], count: int) -> float:
    """Median ms of an image by ONNX Runtime, with as many threads as it takes by itself."""
    times = []
    with open_engine(find_bundle(model["name"]), "ort", model["precision"], "cpu") as sampler:
        for index in range(count):
            start = perf_counter()
            sampler.sample(1, first=index)
            times.append((perf_counter() - start) * 1e3)
    return median(times)


def in_node(page: Path, count: int) -> float:
    """Median ms of an image in Node, one thread."""
    words = ["node", "--input-type=module", "-", page.resolve().as_uri() + "/", str(count)]
    told = subprocess.run(words, input=NODE, capture_output=True, text=True, check=True).stdout
    return median(map(float, told.split()))


def in_chromium(page: Path, count: int) -> float:
    """Median ms of an image in Chromium, as the page says: one thread."""
    from playwright.sync_api import expect, sync_playwright

    handler = partial(Silent, directory=str(page))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with playwright.chromium.launch(executable_path=which("chromium"), args=FLAGS) as browser:
            tab = browser.new_page()
            tab.goto(f"http://127.0.0.1:{server.server_address[1]}/#num={count}")
            status = tab.get_by_role("status")
            expect(status).to_contain_text(f"{count} of {count}", timeout=600_000)
            (told,) = re.findall("([0-9]+) ms each", status.inner_text())
        server.shutdown()
    return float(told)


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--count", type=int, default=32)
    asked = parser.parse_args(arguments)
    model = json.loads((asked.page / "model.json").read_bytes())
    try:
        print(f"{model['name']} {model['precision']}, {machine().cpu}, ms per image:")
        for name, measured in (
            ("ort in Python", in_python(model, asked.count)),
            ("Node", in_node(asked.page, asked.count)),
            ("Chromium", in_chromium(asked.page, asked.count)),
        ):
            print(f"{name:14} {measured:7.1f}")
    except LddganError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
