"""The device layer through the real cuda-core: on the fake driver, and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.gpu.device import Gpu, open_gpu
from tests.engine.gpu.support import skip_without_gpu


@pytest.fixture
def where() -> str:
    return "fake"


@pytest.fixture
def gpu(where: str) -> Iterator[Gpu]:
    if where == "real":
        skip_without_gpu()
    opened = open_gpu()
    yield opened
    opened.close()
