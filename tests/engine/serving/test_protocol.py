"""NVIDIA's own client, tritonclient, asks our service and the real Triton in the same words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.registry import open_engine
from export.bundle import DIGITS, open_bundle
from export.triton.repository import write_repository
from tests.engine.serving.service import serving as serving_ours
from tests.export.triton_server import needs_triton, python, serving

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")

CLIENT = """
import sys
import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

address, file, seeds, indices = sys.argv[1:]
client = InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
told = client.get_model_metadata("digits")
assert {one["name"] for one in told["inputs"]} == {"seed", "index"}
assert client.get_server_metadata()["name"]

def images(binary_in, binary_out, *numbers):
    inputs = []
    for name, values in zip(("seed", "index"), numbers):
        array = np.array(values, np.int64).reshape(-1, 1)
        inputs.append(InferInput(name, array.shape, "INT64"))
        inputs[-1].set_data_from_numpy(array, binary_data=binary_in)
    outputs = [InferRequestedOutput("image", binary_data=binary_out)]
    return client.infer("digits", inputs, outputs=outputs).as_numpy("image")

numbers = [[int(one) for one in text.split(",")] for text in (seeds, indices)]
found = images(True, True, *numbers)
for ways in ((True, False), (False, True), (False, False)):
    assert np.array_equal(images(*ways, *numbers), found), ways
try:
    images(True, True, [-1], [0])
except InferenceServerException as error:
    assert "0..2^63-1" in error.message(), error
else:
    raise AssertionError("a negative seed was answered")
np.save(file, found)
"""


@needs_triton
@pytest.mark.full
@pytest.mark.timeout(900)
def test_tritonclient_gets_the_bytes_of_sample_from_both(tmp_path: Path) -> None:
    seeds, indices = [0, 7, 7, 2**63 - 1], [3, 8, 0, 2**40 + 5]
    write_repository(open_bundle(DIGITS), tmp_path / "models")
    client = tmp_path / "client.py"
    client.write_text(CLIENT)
    words = [",".join(map(str, numbers)) for numbers in (seeds, indices)]

    def asked(address: str, name: str) -> np.ndarray:
        python(client, address, tmp_path / name, *words, cwd=tmp_path)
        return np.load(tmp_path / name)

    with serving(tmp_path / "models", tmp_path, "--log-verbose=0") as real:
        of_triton = asked(real.url.removeprefix("http://").removesuffix("/v2"), "triton.npy")
    with serving_ours("--batch", "8") as service:
        host, port = service.address
        ours = asked(f"{host}:{port}", "ours.npy")
    with open_engine(DIGITS, "ort", batch=8) as sampler:
        true = [
            sampler.sample(8, seed, index - index % 8, 8)[index % 8]
            for seed, index in zip(seeds, indices, strict=True)
        ]
    assert np.array_equal(ours, true)
    # Triton's engine is the best of its environment's: ONNX Runtime, too
    assert np.array_equal(of_triton, true)
