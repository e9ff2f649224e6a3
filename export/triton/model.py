"""A model of Triton's Python backend: requests for seeds and indices -> their images.

`lddgan export --triton` copies this file into a model repository, where Triton runs it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

if "LDDGAN_PATH" in os.environ:  # Triton's Python does not hear PYTHONPATH
    sys.path.insert(0, os.environ["LDDGAN_PATH"])

import lddgan


class TritonPythonModel:
    """An open engine, and the batch in which every image has its slot."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside this file as config.pbtxt says, and make a first image."""
        parameters = json.loads(args["model_config"])["parameters"]
        given: dict[str, Any] = {name: one["string_value"] for name, one in parameters.items()}
        precision = None if given["precision"] == "auto" else given["precision"]
        bundle, batch = Path(__file__).parent / "bundle", int(given["batch"])
        self.sampler = lddgan.open_engine(
            bundle, given["engine"], precision, given["device"], batch=batch
        )
        self.batch = len(next(self.sampler.batches(batch)))  # what the engine takes of it
        self.images([lddgan.Address(seed=0, index=0)])
        pb_utils.Logger.log_info(f"{self.sampler.description}, batches of {self.batch}")

    def images(self, addresses: list[lddgan.Address]) -> Any:
        return lddgan.sample_at(self.sampler, addresses, self.batch)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests in their order; all images are computed together."""
        asked = [numbers_in(request) for request in requests]
        pairs = [pair for numbers in asked if is_valid(numbers) for pair in numbers.tolist()]
        images = self.images([lddgan.Address(seed, index) for seed, index in pairs])
        answers = []
        for numbers in asked:
            if is_valid(numbers):
                mine, images = images[: len(numbers)], images[len(numbers) :]
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("image", mine)]))
            else:
                told = "seed and index must be in 0..2^63-1"
                error = pb_utils.TritonError(told, pb_utils.TritonError.INVALID_ARG)
                answers.append(pb_utils.InferenceResponse(error=error))
        return answers

    def finalize(self) -> None:
        self.sampler.close()


def numbers_in(request: Any) -> Any:
    """The seeds and indices of a request, int64 [N,2]."""
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in ("seed", "index")]
    return np.concatenate([tensor.as_numpy() for tensor in tensors], axis=1)


def is_valid(numbers: Any) -> bool:
    return bool((numbers >= 0).all())
