"""A real service, asked over HTTP: the bytes, the headers, the errors, the end."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lddgan.pictures import grid
from tests.engine.serving.service import Running, ask, serving

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")
LAST = 2**63 - 1


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The PNGs that `lddgan sample` writes of seed 7 in the same batches."""
    folder = tmp_path_factory.mktemp("sampled") / "images"
    words = [sys.executable, "-m", "lddgan", "sample", "--dataset", "digits", "--engine", "ort"]
    words += ["--num", "200", "--batch", "4", "--seed", "7", "--out", str(folder)]
    subprocess.run(words, check=True, capture_output=True)
    return {int(path.stem): path.read_bytes() for path in folder.glob("*.png")}


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


# ---- the bytes ----


def test_200_clients_in_any_order_get_the_bytes_of_sample(
    service: Running, sampled: dict[int, bytes]
) -> None:
    order = list(sampled)
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(200) as clients:
        answers = clients.map(lambda i: service.get(f"/v1/images/digits/7/{i}.png"), order)
        for index, answer in zip(order, answers, strict=True):
            assert answer.status == 200, answer.body
            assert answer.body == sampled[index]


def test_an_address_is_the_same_for_ever(service: Running) -> None:
    path = f"/v1/images/{service.model}/7/3.png"
    first = service.get(path)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert first.headers["content-type"] == "image/png"
    named = service.get("/v1/images/digits/7/3.png")
    assert named.body == first.body
    assert named.headers["cache-control"] == "public, max-age=60"
    assert named.headers["content-location"] == path
    assert named.headers["etag"] == first.headers["etag"]


def test_a_copy_that_is_still_good_is_known_without_computing(service: Running) -> None:
    before = images_computed(service)
    path = f"/v1/images/{service.model}/8/123456.png"
    etag = f'"{path}"'
    for known in (etag, f'W/{etag}, "other"', "*"):
        answer = service.get(path, If_None_Match=known)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == etag
    assert images_computed(service) == before
    assert service.get(path, If_None_Match='"other"').status == 200


def images_computed(service: Running) -> float:
    text = service.get("/metrics").body.decode()
    found = re.search(r'lddgan_images_total\{model="digits"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_killed_and_started_again_it_gives_the_same_bytes_and_etags(service: Running) -> None:
    path = f"/v1/images/{service.model}/7/11.png"
    true = service.get(path)
    with serving() as other:
        assert other.model == service.model
        found = other.get(path)
        other.process.send_signal(signal.SIGKILL)
    assert found.body == true.body
    assert found.headers["etag"] == true.headers["etag"]


def test_what_makes_other_bytes_has_another_digest(service: Running) -> None:
    with serving("--batch", "2") as other:
        assert other.model != service.model
        answer = other.get(f"/v1/images/{service.model}/7/11.png")
        assert answer.status == 404
        assert other.model in json.loads(answer.body)["detail"]


def test_webp_holds_the_same_pixels_and_jpeg_nearly(service: Running) -> None:
    png, webp, jpg = (
        pixels(service.get(f"/v1/images/digits/7/5.{form}").body) for form in ("png", "webp", "jpg")
    )
    assert np.array_equal(png, webp)
    assert np.abs(png.astype(int) - jpg).mean() < 4


def test_archives_hold_the_files_of_sample(service: Running, sampled: dict[int, bytes]) -> None:
    wanted = {f"{index:06d}.png": sampled[index] for index in range(3, 30)}
    body = service.get("/v1/images/digits/7/3-29.zip").body
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == wanted
    assert service.get("/v1/images/digits/7/3-29.zip").body == body
    with tarfile.open(fileobj=io.BytesIO(service.get("/v1/images/digits/7/3-29.tar").body)) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    assert found == wanted
    array = np.load(io.BytesIO(service.get("/v1/images/digits/7/3-29.npy").body))
    assert all(np.array_equal(array[i], pixels(sampled[3 + i])) for i in range(27))


def test_a_grid_is_that_of_sample(service: Running, sampled: dict[int, bytes]) -> None:
    images = np.stack([pixels(sampled[index]) for index in range(12)])
    answer = service.get("/v1/grids/digits/7/0-11.png")
    assert np.array_equal(pixels(answer.body), grid(images))
    answer = service.get("/v1/grids/digits/7/0-11.png?columns=6&more=x")
    assert np.array_equal(pixels(answer.body), grid(images, 6))
    assert answer.headers["content-location"].endswith("/7/0-11.png?columns=6")


def test_a_walk_begins_and_ends_at_the_images(service: Running) -> None:
    steps = [service.get(f"/v1/mix/digits/7/8/5/{k}-4.png").body for k in range(5)]
    assert steps[0] == service.get("/v1/images/digits/7/5.png").body
    assert steps[4] == service.get("/v1/images/digits/8/5.png").body
    assert len(set(steps)) == 5
    assert service.get("/v1/mix/digits/7/8/5/2-8.png").body == steps[1]


# ---- errors ----


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/images/lsun/7/1.png", 404, "no model 'lsun' here"),
        ("/v1/images/digits@0123/7/1.png", 404, "is not served here"),
        ("/v1/images/digits/-7/1.png", 400, "seed is '-7'"),
        (f"/v1/images/digits/{LAST + 1}/1.png", 400, "0..2^63-1"),
        ("/v1/images/digits/07/1.png", 400, "seed is '07'"),
        ("/v1/images/digits/7/1.bmp", 400, ".bmp is none of .png"),
        ("/v1/images/digits/7/1", 400, "INDEX.FORM"),
        ("/v1/images/digits/7/9-3.zip", 400, "may be 1..10000"),
        (f"/v1/images/digits/7/0-{LAST}.zip", 400, "may be 1..10000"),
        ("/v1/images/digits/7/0-3.png", 400, ".png is none of .zip"),
        ("/v1/grids/digits/7/0-256.png", 400, "may be 1..256"),
        ("/v1/grids/digits/7/0-3.png?columns=5", 400, "columns is 5"),
        ("/v1/mix/digits/7/8/0/5-4.png", 400, "a step is K-N.FORM"),
        ("/v1/mix/digits/7/8/0/0-0.png", 400, "a step is K-N.FORM"),
        ("/v2/models/digits/versions/1", 404, "version"),
        ("/../../etc/passwd", 404, "nothing here"),
        ("/v1/images/..%2f..%2fetc/7/1.png", 404, "nothing here"),
        ("/v1/images/digits/7/%00.png", 400, "INDEX.FORM"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    service: Running, path: str, status: int, words: str
) -> None:
    answer = service.get(path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert words in json.loads(answer.body)["detail"]


def test_other_methods_are_refused(service: Running) -> None:
    answer = service.get("/v1/models", "DELETE")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


def test_the_last_image_of_the_last_seed_is_one(service: Running) -> None:
    assert service.get(f"/v1/images/digits/{LAST}/{LAST}.png").status == 200


def test_a_deadline_of_the_client_is_kept(service: Running) -> None:
    with ThreadPoolExecutor(64) as clients:
        paths = [f"/v1/images/digits/11/{index}.png" for index in range(64)]
        answers = list(clients.map(lambda path: service.get(path, X_Timeout_Ms="1"), paths))
    assert {answer.status for answer in answers} <= {200, 504}
    assert 504 in {answer.status for answer in answers}


def test_a_full_queue_is_503_and_says_when_to_come_again() -> None:
    with serving("--queue", "2", "--batch", "1") as service, ThreadPoolExecutor(60) as clients:
        paths = [f"/v1/images/digits/1/{index}.png" for index in range(60)]
        answers = list(clients.map(lambda path: service.get(path, X_Timeout_Ms="20"), paths))
        refused = [answer for answer in answers if answer.status == 503]
        assert refused and {answer.status for answer in answers} <= {200, 503, 504}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert service.get("/v1/images/digits/1/0.png").status == 200


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token\nsecond-token\n")
    with serving("--token-file", tokens) as service:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-token"}):
            answer = service.get("/v1/models", **given)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for token in ("first-token", "second-token"):
            answer = service.get("/v1/models", Authorization=f"Bearer {token}")
            assert answer.status == 200
            image = service.get("/v1/images/digits/7/0.png", Authorization=f"Bearer {token}")
            assert image.headers["cache-control"] == "private, max-age=60"
        for path in ("/", "/healthz", "/readyz"):
            assert service.get(path).status == 200


# ---- the service ----


def test_models_and_metrics_tell_no_path(service: Running) -> None:
    (model,) = json.loads(service.get("/v1/models").body)
    assert f"{model['name']}@{model['digest']}" == service.model
    assert (model["height"], model["width"], model["batch"], model["exact"]) == (32, 32, 4, True)
    assert json.loads(service.get("/v1/models/digits").body)["digest"] == model["digest"]
    here = str(Path(__file__).parents[3])
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v2", "/v2/models/digits", "/"):
        assert here not in service.get(path).body.decode()
    metrics = service.get("/metrics").body.decode()
    for name in ("lddgan_build_info", "lddgan_queue_images", "lddgan_engine_seconds_bucket"):
        assert name in metrics


def test_sigterm_answers_what_is_in_flight() -> None:
    with serving("--drain", "60") as service:
        asking = [service.connect() for _ in range(100)]
        for index, connection in enumerate(asking):
            connection.request("GET", f"/v1/images/digits/5/{index}.png")
        late = service.connect()
        assert ask(late, "/healthz").status == 200  # the 100 came before
        service.process.send_signal(signal.SIGTERM)
        while (ready := ask(late, "/readyz")).status == 200:
            time.sleep(0.001)
        assert ready.status == 503
        refused = ask(late, "/v1/images/digits/5/1000.png")
        assert refused.status == 503
        assert "retry-after" in refused.headers
        statuses = [connection.getresponse().status for connection in asking]
        assert statuses == [200] * 100
        for connection in (*asking, late):
            connection.close()
        assert service.process.wait(60) == 0


def test_a_second_sigterm_ends_it_at_once() -> None:
    with serving("--wait-ms", "60000", "--timeout", "60") as service:
        connection = service.connect()
        connection.request("GET", "/v1/images/digits/5/0.png")  # waits for three others
        assert service.get("/healthz").status == 200
        service.process.terminate()
        while service.get("/readyz").status == 200:
            time.sleep(0.001)
        service.process.terminate()
        assert service.process.wait(10) == 128 + signal.SIGTERM
        connection.close()


def test_what_is_not_done_after_drain_is_cut_off() -> None:
    with serving("--drain", "0.5") as service:
        connection = service.connect()
        connection.request("GET", "/v1/images/digits/5/0-9999.npy")
        answer = connection.getresponse()
        assert answer.read(100)
        assert service.end() == 0
        assert "1 requests were cut off after 0.5 s" in service.log.read_text()
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        connection.close()


def test_the_access_log_is_json() -> None:
    with serving("--access-log") as service:
        service.get("/v1/images/digits/5/0.png")
        assert service.end() == 0
        lines = service.log.read_text().splitlines()
        (line,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert (line["method"], line["path"], line["code"]) == ("GET", "/v1/images/digits/5/0.png", 200)
    assert line["ms"] > 0


def test_fast_is_within_a_grey_level_and_promises_no_bytes(sampled: dict[int, bytes]) -> None:
    with serving("--fast") as service:
        for index in (0, 3):
            answer = service.get(f"/v1/images/{service.model}/7/{index}.png")
            assert answer.headers["etag"].startswith('W/"')
            assert "immutable" not in answer.headers["cache-control"]
            difference = np.abs(pixels(answer.body).astype(int) - pixels(sampled[index]))
            assert difference.max() <= 1


# ---- the Open Inference Protocol ----


def infer(service: Running, seeds: list[object], indices: list[object], **more: object) -> dict:  # type: ignore[type-arg]
    inputs = [
        {"name": name, "shape": [len(values), 1], "datatype": "INT64", "data": values}
        for name, values in (("seed", seeds), ("index", indices))
    ]
    body = json.dumps({"inputs": inputs} | more).encode()
    answer = service.get("/v2/models/digits/infer", "POST", body)
    return {"status": answer.status, "headers": answer.headers} | json.loads(answer.body)


def test_infer_gives_the_same_images(service: Running, sampled: dict[int, bytes]) -> None:
    found = infer(service, [[7], [7], [7]], [0, 9, 4], id="mine")
    (output,) = found["outputs"]
    assert (found["id"], output["datatype"], output["shape"]) == ("mine", "UINT8", [3, 32, 32, 3])
    images = np.array(output["data"], np.uint8).reshape(output["shape"])
    for image, index in zip(images, (0, 9, 4), strict=True):
        assert np.array_equal(image, pixels(sampled[index]))


@pytest.mark.parametrize(
    ("seeds", "indices", "more"),
    [
        ([-1], [0], {}),
        ([LAST + 1], [0], {}),
        ([1.5], [0], {}),
        ([True], [0], {}),
        ([], [], {}),
        ([1, 2], [0], {}),
        ([1], [0], {"outputs": [{"name": "latent"}]}),
        ([1] * 257, [0] * 257, {}),
        ([1] * 342, [0] * 342, {}),
    ],
)
def test_infer_refuses_what_is_no_image(
    service: Running, seeds: list[object], indices: list[object], more: dict[str, object]
) -> None:
    found = infer(service, seeds, indices, **more)
    assert found["status"] == 400
    assert found["error"]


def test_metadata_names_the_tensors(service: Running) -> None:
    found = json.loads(service.get("/v2/models/digits").body)
    assert [one["name"] for one in found["inputs"]] == ["seed", "index"]
    assert found["outputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert service.get(f"/v2/models/digits/versions/{found['versions'][0]}/ready").status == 200
    assert "binary_tensor_data" in json.loads(service.get("/v2").body)["extensions"]
