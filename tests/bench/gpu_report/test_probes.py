"""The noise and the rates of a report."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu_report import probes, rates
from engine.backends.fused.reference import PLAIN
from lddgan.errors import LddganError
from tests.conftest import TINY


def test_a_kernel_that_fails_is_named_beside_the_rates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(rates, "CONVOLUTIONS", rates.CONVOLUTIONS[-1:])
    monkeypatch.setattr(rates, "IMAGES", rates.IMAGES[-1:])
    found = rates.measure_rates("cpu", shrunk=True, ops=PLAIN._replace(add_=broken))
    assert found.pop("add 1x128x256x256") == {"why_not": "an illegal memory access"}
    assert len(found) == 5 and all(rate["ms"] > 0 for rate in found.values())


@pytest.mark.fake_cuda
def test_the_noise_is_compared_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probes.noise(TINY, images=3)
    per_image = 4 * 8 * 8 * (1 + TINY.steps) + TINY.steps * TINY.generator.nz
    assert (found["draws"], found["different"]) == (2 * 3 * per_image, 0)
    true = probes.draw

    def shifted(*given: Any, **seed: Any) -> Any:
        drawn = true(*given, **seed)
        drawn.z[0, 0, 0] = -drawn.z[0, 0, 0]
        return drawn

    monkeypatch.setattr(probes, "draw", shifted)
    with pytest.raises(LddganError, match=r"^2 of [\d,]+ draws are not numpy's, bit for bit"):
        probes.noise(TINY, images=3)
