"""The service's page in Chromium, against the real `lddgan serve`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from export.bundle import SHIPPED
from tests.export.web.test_page import CHROMIUM, FLAGS, LONG

pytestmark = pytest.mark.web

COUNT: Final = 64  # images of the grid
ROOT: Final = Path(__file__).resolve().parents[3]
SIDES: Final = {"digits": 32, "emoji": 64}  # of images
LAST: Final = 2**63 - 1
TOKEN: Final = "a token, of words"
REFUSED: Final = "Failed to load resource"  # Chromium, of every answer that is an error


@contextmanager
def serving(*options: str, port: str = "0", models: Sequence[str] = ("digits",)) -> Iterator[str]:
    """Run `lddgan serve`; gives its address."""
    bundles = [word for name in models for word in ("--bundle", str(SHIPPED[name]))]
    command = (sys.executable, "-m", "lddgan", "serve", *bundles, "--engine", "ort")
    words = (*command, "--port", port, *options)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.terminate()
            process.wait(LONG / 1000)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(models=("digits", "emoji")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        yield browser


@contextmanager
def opened(
    browser: Browser, address: str, link: str = "", spared: str | None = None, **options: Any
) -> Iterator[Page]:
    """A page; what it wrote to the console and what it asked of other hosts must be nothing.

    `spared` is the beginning of what it may write.
    """
    page = browser.new_page(**options)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    ours = (f"{address}/", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(ours) else faults.append(r.url))
    page.goto(f"{address}/{link}")
    yield page
    page.close()
    assert [fault for fault in faults if spared is None or not fault.startswith(spared)] == []


def told(page: Page, words: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(words, timeout=LONG)


def pictures(page: Page) -> Locator:
    return page.get_by_role("group", name="Images of seed").get_by_role("img")


def shown(page: Page, seed: int, first: int = 0, count: int = COUNT, model: str = "digits") -> None:
    """Wait for images, and look at each."""
    told(page, f"Images {first} to {first + count - 1} of seed {seed}.")
    expect(pictures(page)).to_have_count(count)
    widths = pictures(page).evaluate_all("all => all.map((one) => one.naturalWidth)")
    assert widths == [SIDES[model]] * count
    names = pictures(page).evaluate_all("all => all.map((one) => one.alt)")
    assert names == [f"Image {first + i} of seed {seed}, {model}" for i in range(count)]


def fetched(address: str, token: str = "") -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(address, headers=headers)) as answer:
        content: bytes = answer.read()
        return content


def large_of(page: Page) -> Locator:
    return page.get_by_role("dialog").get_by_role("img")


def link_of(page: Page) -> str:
    return page.get_by_label("Permanent link").input_value()


def test_a_link_shows_what_it_names(browser: Browser, address: str) -> None:
    with opened(browser, address, "#model=digits&seed=7&first=3") as page:
        shown(page, 7, 3)
        sources = pictures(page).evaluate_all("all => all.map((one) => one.src)")
        form = rf"{address}/v1/images/digits@[0-9a-f]{{16}}/7/(\d+)\.png"
        found = [re.fullmatch(form, source) for source in sources]
        assert [match and int(match[1]) for match in found] == list(range(3, 67))
        expect(page.get_by_label("First image")).to_have_value("3")
        expect(page.locator("#engine")).to_contain_text("images per second measured")
        page.evaluate("location.hash = '#seed=8'")
        shown(page, 8)
        page.go_back()
        shown(page, 7, 3)


def test_seeds_and_pages(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        shown(page, 0)
        seed = page.get_by_label("Seed", exact=True)
        seed.fill(str(LAST))
        seed.press("Enter")
        shown(page, LAST)
        expect(page.get_by_role("button", name="Previous 64")).to_be_disabled()
        page.get_by_role("button", name="Next 64").click()
        shown(page, LAST, 64)
        page.get_by_role("button", name="Another seed").click()
        expect(seed).not_to_have_value(str(LAST))
        shown(page, int(seed.input_value()))
        page.evaluate(f"location.hash = '#first={LAST - 2}'")
        shown(page, 0, LAST - 2, 3)
        expect(page.get_by_role("button", name="Next 64")).to_be_disabled()


def test_another_model(browser: Browser, address: str) -> None:
    with opened(browser, address, f"#model=digits&seed=3&first={LAST - 7}") as page:
        shown(page, 3, LAST - 7, 8)
        page.get_by_label("Model").select_option("emoji")
        expect(page).to_have_url(re.compile(f"#model=emoji&seed=3&first={LAST - 7}$"))
        expect(page.get_by_role("heading", name="emoji, 64")).to_be_visible()
        shown(page, 3, LAST - 7, 8, "emoji")


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("seed=abc", "seed is abc, and must be in 0..2^63-1."),
        (f"first={LAST + 1}", f"first is {LAST + 1}, and must be in 0..2^63-1."),
        ("to=-1", "to is -1, and must be in 0..2^63-1."),
        ("model=none", "There is no model none here: choose one."),
    ],
)
def test_what_there_is_not_is_told(browser: Browser, address: str, link: str, words: str) -> None:
    with opened(browser, address, f"#{link}") as page:
        told(page, words)


def test_the_large_view_by_keyboard(browser: Browser, address: str) -> None:
    with opened(browser, address, "#seed=7") as page:
        shown(page, 7)
        page.get_by_role("button", name="Copy link").focus()
        page.keyboard.press("Tab")  # one image is in the order of the tab key
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        page.keyboard.press("Enter")
        expect(large_of(page)).to_have_accessible_name("Image 1 of seed 7, digits")
        page.keyboard.press("ArrowRight")
        expect(large_of(page)).to_have_accessible_name("Image 2 of seed 7, digits")
        expect(large_of(page)).to_have_js_property("naturalWidth", 32)
        box = large_of(page).bounding_box()
        assert box and box["width"] > 32 and box["width"] % 32 == 0
        assert link_of(page).endswith("/7/2.png")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").press("Enter")
        assert download.value.suggested_filename == "digits-7-2.png"
        assert download.value.path().read_bytes() == fetched(link_of(page))
        assert fetched(link_of(page)) == fetched(f"{address}/v1/images/digits/7/2.png")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_role("button", name="Image 2 of seed 7, digits")).to_be_focused()


def test_the_large_view_by_clicks(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        shown(page, 0)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Image 63 of seed 0, digits").click()
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == link_of(page)
        page.get_by_role("button", name="Next image").click()
        expect(large_of(page)).to_have_accessible_name("Image 64 of seed 0, digits")
        large_of(page).click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        shown(page, 0, 64)  # the images that one is among


def test_a_walk_goes_from_one_seed_to_the_other(browser: Browser, address: str) -> None:
    with opened(browser, address, "#seed=7&to=8&first=2&step=3") as page:
        shown(page, 7, 2)
        slider, image = page.get_by_role("slider"), page.locator("#step")
        expect(slider).to_have_value("3")
        sources = {}
        for key, step in (("Home", 0), ("End", 32), ("ArrowLeft", 31)):
            slider.press(key)
            source = rf"{address}/v1/mix/digits@[0-9a-f]{{16}}/7/8/2/{step}-32\.png"
            expect(image).to_have_attribute("src", re.compile(source.replace(address, "")[1:]))
            expect(image).to_have_js_property("naturalWidth", 32)
            sources[step] = fetched(image.evaluate("one => one.src"))
        assert sources[0] == fetched(f"{address}/v1/images/digits/7/2.png")
        assert sources[32] == fetched(f"{address}/v1/images/digits/8/2.png")
        assert sources[31] not in (sources[0], sources[32])
        expect(page).to_have_url(re.compile("#model=digits&seed=7&first=2&to=8&step=31$"))
        page.get_by_role("button", name="step 31 of 32").click()
        page.keyboard.press("ArrowLeft")
        expect(large_of(page)).to_have_accessible_name(re.compile("step 30 of 32"))
        page.keyboard.press("Escape")
        expect(slider).to_have_value("30")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_width_and_scheme(browser: Browser, address: str, width: int, scheme: Any) -> None:
    screen = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    with opened(browser, address, f"#seed={LAST}&to={LAST}&first={LAST - 70}", **screen) as page:
        shown(page, LAST, LAST - 70)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 3 * 127) == (scheme == "light")
        pictures(page).first.click()
        box = page.get_by_role("dialog").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width


def test_a_service_that_asks_for_a_token(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"another\n{TOKEN}\n")
    with (
        serving("--token-file", str(tmp_path / "tokens")) as address,
        opened(browser, address, "#seed=7&to=8", REFUSED) as page,
    ):
        told(page, "This service asks for a token.")
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        told(page, "This token is not accepted.")
        field.fill(TOKEN)
        field.press("Enter")
        shown(page, 7)
        expect(field).to_be_hidden()
        sources = pictures(page).evaluate_all("all => all.map((one) => one.src)")
        assert all(source.startswith(f"blob:{address}/") for source in sources)
        expect(page.locator("#step")).to_have_js_property("naturalWidth", 32)
        pictures(page).first.click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.path().read_bytes() == fetched(link_of(page), TOKEN)
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.evaluate("document.cookie") == ""
        page.reload()
        told(page, "This service asks for a token.")


def test_a_busy_service_is_asked_again(browser: Browser, address: str) -> None:
    asked: list[str] = []

    def busy_once(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"})

    with opened(browser, address, "#seed=7", REFUSED) as page:
        page.route("**/8/3.png", busy_once)
        page.evaluate("location.hash = '#seed=8'")
        shown(page, 8)
    assert len(asked) > 1 and len({*asked}) == 1


def test_a_service_that_ends_and_one_of_another_digest(browser: Browser) -> None:
    with ExitStack() as closing:
        with serving() as address:
            page = closing.enter_context(opened(browser, address, spared=REFUSED))
            shown(page, 0)
            before = pictures(page).first.evaluate("one => one.src")
        page.get_by_role("button", name="Next 64").click()
        told(page, "does not answer. Show asks again.")
        with serving("--batch", "4", port=address.rpartition(":")[2]):
            page.get_by_role("button", name="Show").click()
            told(page, "The model has changed: these are its new images. Images 64 to 127 of")
            shown(page, 0, 64)
            assert pictures(page).first.evaluate("one => one.src").split("/")[-3] not in before


def test_what_is_told_of_a_model(browser: Browser, address: str) -> None:
    def changed(route: Route) -> None:
        unlike = {"random_weights": True, "images_per_second": None}
        route.fulfill(json=[model | unlike for model in route.fetch().json()])

    with opened(browser, address) as page:
        shown(page, 0)
        warning = page.get_by_text("This model has random weights")
        expect(warning).to_be_hidden()
        page.route("**/v1/models", changed)
        page.reload()
        shown(page, 0)
        expect(warning).to_be_visible()
        expect(page.locator("#engine")).to_contain_text("speed not measured yet")
