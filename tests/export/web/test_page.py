"""The page in Chromium, against the same bundle in Python."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from engine.registry import open_engine
from engine.sampler import Sampler
from export.agreement import Images
from export.bundle import SHIPPED, open_bundle
from export.web.folder import write_web
from lddgan.noise import draw, normals
from tests.export.web.runtime import RUNTIME

pytestmark = pytest.mark.web

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
# In a closed network Chromium's own requests would be refused, many at a time.
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONG: Final = 60_000  # ms that a page may take
SIDE: Final = 64  # of an image


class Handler(SimpleHTTPRequestHandler):
    """What `python -m http.server` does, silently."""

    def log_message(self, *_: object) -> None:
        pass


class Isolated(Handler):
    """With the headers that allow threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@contextmanager
def served(folder: Path, handler: type[Handler] = Handler) -> Iterator[str]:
    """Serve a folder; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "page"
    write_web(open_bundle(SHIPPED["emoji"]), folder, RUNTIME)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def python() -> Iterator[Sampler]:
    with open_engine(SHIPPED["emoji"], "ort") as sampler:
        yield sampler


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A page; what it wrote to the console and what it asked of other hosts must be nothing."""
    page = browser.new_page(**options)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    ours = (address.partition("#")[0], "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(ours) else faults.append(r.url))
    page.goto(address)
    yield page
    page.close()
    assert faults == []


def images_of(page: Page, count: int) -> Images:
    """What a page shows when it is done: its PNG, cut into images [count,H,W,3]."""
    expect(page.get_by_role("status")).to_contain_text(f"{count} of {count} images", timeout=LONG)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    grid = np.asarray(Image.open(download.value.path()).convert("RGB"))
    rows = np.split(grid, len(grid) // SIDE)
    cells = [cell for row in rows for cell in np.hsplit(row, row.shape[1] // SIDE)]
    return np.stack(cells[:count])


def far(a: Images, b: Images) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b).max())


def status_of(page: Page) -> Any:
    return expect(page.get_by_role("status"))


def test_pixels_of_16_seeds(browser: Browser, address: str, python: Sampler) -> None:
    seeds = [*range(14), 2**53 + 1, 2**63 - 1]
    with opened(browser, f"{address}#num=1") as page:
        for seed in seeds:
            page.get_by_label("Seed", exact=True).fill(str(seed))
            page.get_by_role("button", name="Sample").click()
            assert far(images_of(page, 1), python.sample(1, seed)) <= 1


def test_a_link_shows_the_images_it_names(browser: Browser, address: str, python: Sampler) -> None:
    with opened(browser, f"{address}#seed=7&first=3&num=5") as page:
        assert far(images_of(page, 5), python.sample(5, 7, first=3)) <= 1
        page.evaluate("location.hash = '#seed=8&num=2'")
        assert far(images_of(page, 2), python.sample(2, 8)) <= 1


def test_noise_in_the_browser(browser: Browser, address: str) -> None:
    seed, stream, first, size = 2**63 - 1, 3, 2**63 - 9, 100_001
    program = f"""async () => {{
        const {{ normals }} = await import("./noise.mjs");
        const drawn = normals({seed}n, {stream}, {first}n, 3, {size});
        const digest = await crypto.subtle.digest("SHA-256", drawn);
        return Array.from(new Uint8Array(digest));
    }}"""
    with opened(browser, f"{address}#num=1") as page:
        digest = bytes(page.evaluate(program))
    assert digest == hashlib.sha256(normals(seed, stream, first, 3, size).tobytes()).digest()


def test_walk_goes_from_one_seed_to_the_other(
    browser: Browser, address: str, python: Sampler
) -> None:
    ends = [[part.astype(np.float64) for part in draw(python.preset, 2, 1, s)] for s in (7, 8)]
    expected = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        length = np.sqrt((1 - share) ** 2 + share**2)
        of_a, of_b = (1 - share) / length, share / length
        mixed = (a * of_a + b * of_b for a, b in zip(*ends, strict=True))
        expected.append(python.run(*(part.astype(np.float32) for part in mixed)))
    with opened(browser, f"{address}#seed=7&to=8&first=2&num=5") as page:
        assert far(images_of(page, 5), np.concatenate(expected)) <= 1


def test_the_keyboard_is_enough(browser: Browser, address: str, python: Sampler) -> None:
    with opened(browser, f"{address}#num=1") as page:
        images_of(page, 1)
        page.get_by_label("Seed", exact=True).focus()
        page.keyboard.press("Control+A")
        page.keyboard.type("5")
        page.keyboard.press("Tab")
        page.keyboard.type("1")  # the field's content is selected: first = 1
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{address}#seed=5&first=1&num=1")
        assert far(images_of(page, 1), python.sample(1, 5, first=1)) <= 1


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("seed=abc", "seed is abc, and must be in 0..2^63-1."),
        (f"seed={2**63}", f"seed is {2**63}, and must be in 0..2^63-1."),
        (f"first={2**63 - 1}&num=2", "first + num passes 2^63."),
        ("num=0", "num is 0, and must be in 1..256."),
        ("to=-1", "to is -1, and must be in 0..2^63-1."),
    ],
)
def test_what_cannot_be_sampled_is_told(
    browser: Browser, address: str, link: str, told: str
) -> None:
    with opened(browser, f"{address}#{link}") as page:
        status_of(page).to_have_text(told, timeout=LONG)


def test_threads_where_the_headers_allow_them(
    browser: Browser, folder: Path, python: Sampler
) -> None:
    with served(folder, Isolated) as address, opened(browser, f"{address}#num=2") as page:
        assert far(images_of(page, 2), python.sample(2)) <= 1
        threads = min(4, page.evaluate("navigator.hardwareConcurrency"))
        status_of(page).to_contain_text(f"WebAssembly, {threads} thread")


def test_webassembly_runs_where_webgpu_fails(
    browser: Browser, address: str, python: Sampler
) -> None:
    with opened(browser, f"{address}#num=1") as page:
        images_of(page, 1)
        page.get_by_label("Run by").select_option("webgpu")
        status_of(page).to_contain_text("WebGPU failed", timeout=LONG)
        assert far(images_of(page, 1), python.sample(1)) <= 1
        expect(page.get_by_label("Run by")).to_have_value("wasm")


def test_a_missing_graph_is_told(browser: Browser, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "decoder.onnx").unlink()
    with served(tmp_path / "page") as address:
        page = browser.new_page()
        page.goto(address)
        status_of(page).to_contain_text("decoder.onnx cannot be loaded (404)", timeout=LONG)
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_its_width(browser: Browser, address: str, scheme: Any) -> None:
    phone = {"viewport": {"width": 360, "height": 640}, "color_scheme": scheme}
    with opened(browser, f"{address}#num=1", **phone) as page:
        images_of(page, 1)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 3 * 127) == (scheme == "light")
