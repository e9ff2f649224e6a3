"""Clients that send nonsense, send slowly, read slowly, or leave."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.serving.server import HEADER_BYTES, HEADER_SECONDS
from tests.engine.serving.service import SECONDS, Running, ask, serving

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")

REFUSED = {400, 401, 404, 405, 413, 415}
fuzz = settings(deadline=None, derandomize=True, database=None, max_examples=300)
text = st.text(max_size=12) | st.sampled_from(["..", ".", "%2e%2e", "\x00", "a" * 2000, "é", "//"])
number = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from(["007", "1e3", "0x1", str(2**63 - 1), str(2**63), "٣", "+1", " 1", ""]),
)
name = st.one_of(
    st.builds(
        lambda n, form: f"{n}.{form}", number, st.sampled_from(["png", "webp", "PNG", "zip"])
    ),
    st.builds(
        lambda a, b, form: f"{a}-{b}.{form}", number, number, st.sampled_from(["npy", "png"])
    ),
    text,
)
model = st.sampled_from(["digits", "digits@", "digits@0", "Digits", "@"]) | text
path = st.one_of(
    st.tuples(st.just("v1"), st.just("images"), model, number, name),
    st.tuples(st.just("v1"), st.just("grids"), model, number, name),
    st.tuples(st.just("v1"), st.just("mix"), model, number, number, number, name),
    st.tuples(st.sampled_from(["v1", "v2"]), st.just("models"), model, text),
    st.lists(text, max_size=5),
).map("/".join)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving() as running:
        yield running


@fuzz
@given(path=path, query=st.text(max_size=8), known=st.text('abc*,"W/ ', max_size=8))
def test_any_address_is_an_image_or_a_clean_refusal(
    service: Running, path: str, query: str, known: str
) -> None:
    address = f"/{quote(path, safe='/@')}?{quote(query)}"
    answer = service.get(address, If_None_Match=known)
    assert answer.status in REFUSED | {200, 304}
    if answer.status in REFUSED:
        assert json.loads(answer.body)["detail"]


@fuzz
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    length=st.none() | st.sampled_from(["0", "5", "-1", "x", "9" * 30]),
)
def test_any_inference_request_is_a_clean_refusal(
    service: Running, body: bytes, length: str | None
) -> None:
    headers = {} if length is None else {"Inference_Header_Content_Length": length}
    answer = service.get("/v2/models/digits/infer", "POST", body, **headers)
    assert answer.status in REFUSED


def test_a_large_body_is_refused(service: Running) -> None:
    answer = service.get("/v2/models/digits/infer", "POST", bytes(2 << 20))
    assert answer.status == 413


def test_what_openapi_says_is_there(service: Running) -> None:
    described = json.loads(service.get("/openapi.json").body)
    values = {"model": "digits", "seed": "7", "to": "8", "index": "1"}
    names = {"images": "3.png", "grids": "0-3.png", "mix": "1-4.webp"}
    for path, methods in described["paths"].items():
        if "get" in methods:
            name = names.get(path.partition("/v1/")[2].partition("/")[0], "")
            filled = path.format(**values, name=name)
            answer = service.get(filled)
            assert answer.status == 200, filled
            media = answer.headers["content-type"].partition(";")[0]
            assert media in methods["get"]["responses"]["200"]["content"]


def raw(service: Running) -> socket.socket:
    return socket.create_connection(service.address, SECONDS)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 10_000_000,
        b"GET /" + b"x" * (2 * HEADER_BYTES) + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["header", "address", "tls", "bytes", "length"],
)
def test_broken_requests_are_refused_and_the_connection_closed(
    service: Running, sent: bytes
) -> None:
    with raw(service) as client:
        try:
            client.sendall(sent)
            answer = client.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert service.get("/healthz").status == 200


def test_half_a_body_is_a_client_that_left(service: Running) -> None:
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    with raw(service) as client:
        client.sendall(head + b"{")
    deadline = time.monotonic() + SECONDS
    left = b'lddgan_requests_total{code="499",route="infer"} 1.0'
    while left not in service.get("/metrics").body:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in service.log.read_text()


def computed(service: Running) -> float:
    found = re.search(rb'lddgan_images_total\{model="digits"\} (\S+)', service.get("/metrics").body)
    return float(found[1]) if found else 0.0


def test_work_stops_when_its_client_leaves(service: Running) -> None:
    with raw(service) as client:
        client.sendall(b"GET /v1/images/digits/77/0-9999.npy HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000)
    before = computed(service)
    deadline = time.monotonic() + SECONDS
    while (now := computed(service)) != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.3)
    assert before < 5000
    log = service.log.read_text()
    assert "0-9999.npy: ended early: the client left" in log
    assert "never retrieved" not in log and "Traceback" not in log


def test_a_client_that_does_not_read_keeps_nobody_waiting(service: Running) -> None:
    with raw(service) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /v1/images/digits/78/0-9999.npy HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(100)
        for index in range(8):
            assert service.get(f"/v1/images/digits/79/{index}.png").status == 200


@pytest.mark.full
def test_half_a_request_is_waited_for_so_long_only(service: Running) -> None:
    with raw(service) as silent, raw(service) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        start = time.monotonic()
        for client in (silent, half):
            assert client.recv(1000) == b""
        assert HEADER_SECONDS - 1 < time.monotonic() - start < HEADER_SECONDS + 10
    kept = service.connect()
    assert ask(kept, "/healthz").status == 200
    kept.close()
