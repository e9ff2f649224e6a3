"""The diffusion of LDDGAN (arXiv 2406.11713, section 3): schedule, posterior and sampling loop.

t runs 0..T-1; x_T is pure noise.  The schedule is that of DDGAN (arXiv 2112.07804), in numpy:
sampling needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lddgan.preset import Preset

if TYPE_CHECKING:
    from torch import Tensor

X = TypeVar("X")  # numpy, torch, or an array where an engine computes


class Posterior(NamedTuple):
    """Coefficients of q(x_t | x_{t+1}, x_0), float32 [T] each (equation 3)."""

    coef1: NDArray[np.float32]  # of x_0
    coef2: NDArray[np.float32]  # of x_{t+1}
    log_var: NDArray[np.float32]

    @property
    def sigma(self) -> NDArray[np.float32]:
        """Standard deviation of the noise that is added; none at t = 0."""
        sigma = np.exp(0.5 * self.log_var.astype(np.float64))
        sigma[0] = 0.0
        return sigma.astype(np.float32)


def schedule(preset: Preset) -> NDArray[np.float32]:
    """Variances beta_0..beta_T of the forward process, float32 [T+1]; beta_0 is 1e-8."""
    start = 1e-3  # s_0
    s = np.arange(preset.steps + 1) / preset.steps * (1 - start) + start
    log_mean = -0.25 * s**2 * (preset.beta_max - preset.beta_min) - 0.5 * s * preset.beta_min
    alpha_bar = np.exp(2 * log_mean)
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return np.concatenate(([1e-8], betas)).astype(np.float32)  # so that index t means x_t


def posterior(preset: Preset) -> Posterior:
    """Coefficients of the posterior for t = 0..T-1."""
    beta = schedule(preset)[1:].astype(np.float64)
    alpha = 1 - beta
    alpha_bar = np.cumprod(alpha)
    alpha_bar_prev = np.concatenate(([1.0], alpha_bar[:-1]))
    variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return Posterior(
        coef1=(beta * np.sqrt(alpha_bar_prev) / (1 - alpha_bar)).astype(np.float32),
        coef2=((1 - alpha_bar_prev) * np.sqrt(alpha) / (1 - alpha_bar)).astype(np.float32),
        log_var=np.log(np.maximum(variance, 1e-20)).astype(np.float32),  # of a variance that is 0
    )


def gather(coefficients: NDArray[Any], t: Tensor) -> Tensor:
    """coefficients[t] as float32 [B,1,1,1], on the device of t."""
    import torch

    values = torch.as_tensor(coefficients.astype(np.float32), device=t.device)
    return values[t][:, None, None, None]


def forward_pair(
    preset: Preset, x_0: Tensor, t: Tensor, noise: Tensor, noise_next: Tensor
) -> tuple[Tensor, Tensor]:
    """A training pair (x_t, x_{t+1}) of the forward process (equations 1-2).

    x_0, noise, noise_next [B,C,h,w]; t int64 [B] in 0..T-1.
    """
    beta = schedule(preset).astype(np.float64)
    a = np.sqrt(1 - beta)
    a_bar = np.cumprod(a)
    x_t = gather(a_bar, t) * x_0 + gather(np.sqrt(1 - a_bar**2), t) * noise
    return x_t, gather(a, t + 1) * x_t + gather(np.sqrt(beta), t + 1) * noise_next


def posterior_sample(
    coefficients: Posterior, x_0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """x_t drawn from q(x_t | x_{t+1}, x_0); all tensors [B,C,h,w], t int64 [B]."""
    mean = gather(coefficients.coef1, t) * x_0 + gather(coefficients.coef2, t) * x_next
    return mean + gather(coefficients.sigma, t) * noise


def chain(
    step: Callable[[X, int, X, X], X], x_T: X, z: Sequence[X], noise: Sequence[X]
) -> Iterator[X]:
    """Yield x after each of the T calls of `step(x, t, z, noise)`, t = T-1..0; the last is x_0.

    x_T [B,C,h,w]; call k is given z[k] [B,nz] and noise[k] [B,C,h,w], and has t = T-1-k.
    """
    x = x_T
    for t, z_k, noise_k in zip(reversed(range(len(z))), z, noise, strict=True):
        x = step(x, t, z_k, noise_k)
        yield x


def sample(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],  # x_t, t, z -> x_0
    preset: Preset,
    x_T: Tensor,
    z: Tensor,
    noise: Tensor,
) -> Tensor:
    """Denoise x_T [B,C,h,w] in T steps to x_0, the latent divided by the scale factor.

    z [T,B,nz], noise [T,B,C,h,w]: index k is the k-th call, t = T-1-k.  Raises ValueError if they
    are not for T calls.
    """
    import torch

    if not len(z) == len(noise) == preset.steps:
        raise ValueError(f"z is for {len(z)} calls, noise for {len(noise)}: not {preset.steps}")
    coefficients = posterior(preset)

    def step(x_t: Tensor, t: int, z: Tensor, noise: Tensor) -> Tensor:
        times = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        x_0 = generator(x_t, times, z)
        return posterior_sample(coefficients, x_0, x_t, times, noise)

    *_, x_0 = chain(step, x_T, z.unbind(), noise.unbind())
    return x_0
