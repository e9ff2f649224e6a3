"""The Open Inference Protocol, version 2, with its binary extension: what NVIDIA's Triton speaks.

https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from engine.backend import Images
from engine.serving.gate import Problem
from engine.serving.served import Served
from engine.slots import Address
from lddgan.errors import why_invalid
from lddgan.noise import MAX_INDEX

MOST_IMAGES: Final = 256  # of one request
MOST_VALUES: Final = 1 << 20  # of an answer in JSON
INPUTS: Final = ("seed", "index")
OUTPUT: Final = "image"
JSON_BYTES: Final = "Inference-Header-Content-Length"

Size = Annotated[int, Field(ge=0, le=MOST_IMAGES)]
Number = Annotated[int, Field(strict=True)]


class Parameters(BaseModel):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False


class Tensor(BaseModel):
    """An input: its numbers in `data`, or after the JSON."""

    name: str
    shape: tuple[Size, Size]
    datatype: str
    parameters: Parameters = Parameters()
    data: list[Number | list[Number]] | None = None


class Output(BaseModel):
    name: str
    parameters: Parameters = Parameters()


class Inference(BaseModel):
    """The JSON of a request."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Output] | None = None
    parameters: Parameters = Parameters()


class Asked(NamedTuple):
    """The images of a request, and how its answer is to be written."""

    addresses: list[Address]
    id: str | None
    is_binary: bool


def metadata(model: Served) -> dict[str, Any]:
    """What the protocol tells of a model."""
    _, height, width = model.preset.image_shape
    numbers = [{"name": name, "datatype": "INT64", "shape": [-1, 1]} for name in INPUTS]
    return {
        "name": model.name,
        "versions": [model.digest],
        "platform": f"lddgan_{model.sampler.backend.name}",
        "inputs": numbers,
        "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": [-1, height, width, 3]}],
    }


def read_inference(body: bytes, headers: Mapping[str, str], model: Served) -> Asked:
    """What a request asks of a model. Raises Problem if it cannot be read, or for too much."""
    if headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "compressed requests are not read")
    told = headers.get(JSON_BYTES, str(len(body)))
    if not told.isascii() or not told.isdigit() or int(told) > len(body):
        raise Problem(400, f"{JSON_BYTES} is {told[:40]!r}, and the body has {len(body)} bytes")
    try:
        asked = Inference.model_validate_json(body[: int(told)])
    except ValidationError as error:
        raise Problem(400, why_invalid(error, "the request")) from error
    numbers, rest = {}, body[int(told) :]
    for tensor in asked.inputs:
        numbers[tensor.name], rest = read_numbers(tensor, rest)
    if rest:
        raise Problem(400, f"{len(rest)} bytes after the inputs")
    if tuple(sorted(numbers)) != tuple(sorted(INPUTS)) or len(asked.inputs) != len(INPUTS):
        raise Problem(400, f"the inputs are {', '.join(INPUTS)}, each INT64 [n,1]")
    seeds, indices = (numbers[name] for name in INPUTS)
    if len(seeds) != len(indices) or not seeds:
        raise Problem(400, f"{len(seeds)} seeds and {len(indices)} indices; give n >= 1 of each")
    wanted = asked.outputs or [Output(name=OUTPUT)]
    if [output.name for output in wanted] != [OUTPUT]:
        raise Problem(400, f"the output is {OUTPUT}, once")
    own = wanted[0].parameters.binary_data
    is_binary = asked.parameters.binary_data_output if own is None else own
    most = MOST_IMAGES if is_binary else max(1, MOST_VALUES // math.prod(model.preset.image_shape))
    if len(seeds) > most:
        raise Problem(400, f"{len(seeds)} images, and may be {most}: more as binary_data")
    return Asked([Address(*pair) for pair in zip(seeds, indices, strict=True)], asked.id, is_binary)


def read_numbers(tensor: Tensor, rest: bytes) -> tuple[list[int], bytes]:
    """The numbers of an input, and the bytes after them. Raises Problem."""
    if tensor.datatype != "INT64" or tensor.shape[1] != 1:
        raise Problem(400, f"{tensor.name[:40]} is {tensor.datatype[:40]}, and must be INT64 [n,1]")
    size = tensor.parameters.binary_data_size
    if size is not None:
        if not 0 <= size <= len(rest) or size % 8 or tensor.data is not None:
            raise Problem(400, f"{tensor.name[:40]}: {size} bytes do not fit the body")
        found: list[Any] = np.frombuffer(rest[:size], "<i8").tolist()
        rest = rest[size:]
    else:
        found = [
            one for row in tensor.data or () for one in ([row] if isinstance(row, int) else row)
        ]
    if len(found) != math.prod(tensor.shape):
        raise Problem(400, f"{tensor.name[:40]} has {len(found)} numbers, its shape says otherwise")
    for one in found:
        if not 0 <= one <= MAX_INDEX:
            raise Problem(400, f"{tensor.name[:40]} is {one}, and must be in 0..2^63-1")
    return found, rest


def infer_answer(asked: Asked, images: Images, model: Served) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "UINT8", "shape": list(images.shape)}
    answer = {"model_name": model.name, "model_version": model.digest, "outputs": [output]}
    if asked.id is not None:
        answer["id"] = asked.id
    if not asked.is_binary:
        flat: NDArray[np.uint8] = images.reshape(-1)
        output["data"] = flat.tolist()
        return json.dumps(answer).encode(), {"Content-Type": "application/json"}
    output["parameters"] = {"binary_data_size": images.nbytes}
    head = json.dumps(answer).encode()
    headers = {"Content-Type": "application/octet-stream", JSON_BYTES: str(len(head))}
    return head + images.tobytes(), headers
