"""The loop over T calls."""

from __future__ import annotations

import pytest
import torch

from lddgan.diffusion import chain, sample
from tests.conftest import TINY


def test_chain_counts_t_down_and_passes_x_on() -> None:
    def step(x: str, t: int, z: str, noise: str) -> str:
        return f"{x} {t}{z}{noise}"

    assert [*chain(step, "x", "abc", "ABC")] == ["x 2aA", "x 2aA 1bB", "x 2aA 1bB 0cC"]


def test_sample_refuses_noise_of_other_than_t_calls() -> None:
    x_T, z, noise = torch.zeros(1, 4, 8, 8), torch.zeros(3, 1, 10), torch.zeros(3, 1, 4, 8, 8)
    for other in (z[:2], torch.cat([z, z])):
        with pytest.raises(ValueError, match=f"z is for {len(other)} calls, noise for 3: not 3"):
            sample(lambda x, t, z: x, TINY, x_T, other, noise)
