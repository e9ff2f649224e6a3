"""A second NCSN++, and its wavelet form: functions of a published state dict.

Written from a specification of the published networks, by someone who had not seen those of
lddgan/networks.  `python -m tests.reference.second_ncsnpp` checks it with the recorded outputs of
the published code, and records the cases of 256x256.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.weights import value

HERE = Path(__file__).parent
INPUTS = {"ddgan-lsun": (1, 3, 256, 256), "wddgan-lsun": (1, 12, 128, 128)}
SEED, STEP, STRIDE = 20, 2, 5  # the odd stride meets every phase of the upsampling
# Levels, blocks, resolution with attention, wavelet form. Every width is read off the shapes.
SIZES: dict[str, tuple[int, int, int | None, bool]] = {
    "ddgan-cifar10": (4, 2, 16, False),
    "wddgan-cifar10": (3, 2, None, False),
    "wddgan-small": (3, 2, 16, True),
    **dict.fromkeys(("ddgan-celeba_256", "ddgan-lsun"), (6, 2, 16, False)),
    **dict.fromkeys(("wddgan-celeba_256", "wddgan-lsun"), (5, 2, 16, True)),
}
FIR = {"down": ((1, 1), 1, 2), "up": ((2, 1), 4, 1), "pyramid": ((2, 2), 1, 1)}  # pad, gain, stride
State = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
Kept = list[Tensor] | None  # high bands, from the down to the up blocks; None means FIR


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def conv(state: State, name: str, x: Tensor, groups: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)


def group_norm(state: State, name: str, x: Tensor, zemb: Tensor | None = None) -> Tensor:
    affine = state.get(f"{name}.weight"), state.get(f"{name}.bias")  # AdaGN has none
    h = F.group_norm(x, min(x.shape[1] // 4, 32), *affine, eps=1e-6)
    if zemb is None:
        return h
    gamma, beta = linear(state, f"{name}.style", zemb)[:, :, None, None].chunk(2, dim=1)
    return gamma * h + beta


def fir(x: Tensor, way: str) -> Tensor:
    pad, gain, stride = FIR[way]
    x = torch.kron(x, x.new_tensor([[1, 0], [0, 0]])) if way == "up" else x  # insert zeros
    taps = x.new_tensor([1, 3, 3, 1])
    kernel = (gain * torch.outer(taps, taps) / 64).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, pad * 2), kernel, stride=stride, groups=x.shape[1])


def haar(x: Tensor) -> tuple[Tensor, ...]:
    a, b, c, d = (F.pixel_unshuffle(x, 2)[:, corner::4] for corner in range(4))
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def inverse_haar(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor) -> Tensor:
    pixels = ll + lh + hl + hh, ll - lh + hl - hh, ll + lh - hl - hh, ll - lh - hl + hh
    return F.pixel_shuffle(torch.stack(pixels, dim=2).flatten(1, 2) / 2, 2)


def in_haar(block: partial[Tensor], h: Tensor) -> Tensor:
    ll, lh, hl, hh = haar(h)
    return inverse_haar(2 * block(ll / 2), lh, hl, hh)


def haar_pair(state: State, name: str, h: Tensor, x: Tensor, way: str, kept: list[Tensor]) -> Pair:
    if way == "down":
        ll, *high = haar(h)
        kept.append(torch.cat(high, dim=1))
        return ll / 2, haar(x)[0] / 2
    lh, hl, hh = (2 * conv(state, f"{name}.convH_0", kept.pop() / 2, groups=3)).chunk(3, dim=1)
    return inverse_haar(2 * h, lh, hl, hh), inverse_haar(2 * x, lh, hl, hh)


def residual(state: State, emb: Pair, kept: Kept, name: str, x: Tensor, way: str = "") -> Tensor:
    temb, zemb = emb
    h = F.silu(group_norm(state, f"{name}.GroupNorm_0", x, zemb))
    if way and kept is None:
        h, x = fir(h, way), fir(x, way)
    h = conv(state, f"{name}.Conv_0", h)
    x = conv(state, f"{name}.Conv_2", x) if f"{name}.Conv_2.weight" in state else x
    if way and kept is not None:
        h, x = haar_pair(state, name, h, x, way, kept)
    h = h + linear(state, f"{name}.Dense_0", F.silu(temb))[:, :, None, None]
    h = conv(state, f"{name}.Conv_1", F.silu(group_norm(state, f"{name}.GroupNorm_1", h, zemb)))
    return (x + h) / 2**0.5


def attention(state: State, name: str, x: Tensor) -> Tensor:
    W, b = ([state[f"{name}.NIN_{layer}.{part}"] for layer in range(4)] for part in "Wb")
    rows = group_norm(state, f"{name}.GroupNorm_0", x).flatten(2).transpose(1, 2)
    q, k, v = (rows @ W[layer] + b[layer] for layer in range(3))
    mixed = torch.softmax(q @ k.transpose(1, 2) / x.shape[1] ** 0.5, dim=-1) @ v
    return (x + (mixed @ W[3] + b[3]).transpose(1, 2).reshape(x.shape)) / 2**0.5


def reduce_pyramid(state: State, name: str, pyramid: Tensor, wavelet: bool) -> Tensor:
    if wavelet:
        return conv(state, name, torch.cat(haar(pyramid), dim=1) / 2)
    weight, bias = state[f"{name}.Conv2d_0.weight"], state[f"{name}.Conv2d_0.bias"]
    return F.conv2d(fir(pyramid, "pyramid"), weight, bias, stride=2)


def embed(state: State, t: Tensor, z: Tensor) -> Pair:
    angles = t[:, None] * torch.logspace(0, -4, state["all_modules.0.weight"].shape[1] // 2)
    sinusoid = torch.cat([angles.sin(), angles.cos()], dim=1).to(z)
    temb = linear(state, "all_modules.1", F.silu(linear(state, "all_modules.0", sinusoid)))
    zemb = z / torch.sqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
    for layer in range(1, sum(name.startswith("z_transform") for name in state), 2):
        zemb = F.silu(linear(state, f"z_transform.{layer}", zemb))
    return temb, zemb


@torch.no_grad()
def generator(name: str, state: State, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
    levels, blocks, resolution, wavelet = SIZES[name]
    names = (f"all_modules.{n}" for n in range(2, len(state)))
    block = partial(residual, state, embed(state, t, z), [] if wavelet else None)
    h, pyramid = conv(state, next(names), x_t), x_t
    skips = [h]
    for level in range(levels):
        for _ in range(blocks):
            h = block(next(names), h)
            h = attention(state, next(names), h) if h.shape[-1] == resolution else h
            skips.append(h)
        if level < levels - 1:
            h = block(next(names), h, "down")
            h = pyramid = (reduce_pyramid(state, next(names), pyramid, wavelet) + h) / 2**0.5
            skips.append(h)
    first, middle, last = partial(block, next(names)), next(names), partial(block, next(names))
    h = attention(state, middle, in_haar(first, h) if wavelet else first(h))
    h = in_haar(last, last(h)) if wavelet else last(h)
    for level in reversed(range(levels)):
        for _ in range(blocks + 1):
            h = block(next(names), torch.cat([h, skips.pop()], dim=1))
        h = attention(state, next(names), h) if h.shape[-1] == resolution else h
        h = block(next(names), h, "up") if level > 0 else h
    h = F.silu(group_norm(state, next(names), h))
    return torch.tanh(conv(state, next(names), h))


def x0_of(name: str, x_t: np.ndarray, t: np.ndarray, z: np.ndarray) -> np.ndarray:
    shapes = json.loads((HERE / "official_keys.json").read_text())[f"{name}/generator"]
    state = {key: torch.from_numpy(value(key, tuple(shape))) for key, shape in shapes.items()}
    return generator(name, state, *map(torch.from_numpy, (x_t, t, z))).numpy()


def main() -> None:
    for name in ("ddgan-cifar10", "wddgan-cifar10", "wddgan-small"):
        case = np.load(HERE / f"{name}_generator.npz")
        error = np.abs(x0_of(name, case["x_t"], case["t"], case["z"]) - case["x0"]).max()
        print(name, "relative deviation", error / np.abs(case["x0"]).max())
        assert error <= 1e-4 * np.abs(case["x0"]).max()
    for name, shape in INPUTS.items():
        rng, t = np.random.default_rng(SEED), np.array([STEP])
        x_t, z = (rng.standard_normal(size, np.float32) for size in (shape, (1, 100)))
        x0 = x0_of(name, x_t, t, z)[:, :, ::STRIDE, ::STRIDE]
        np.savez(HERE / f"{name}_generator.npz", t=t, z=z, seed=SEED, stride=STRIDE, x0=x0)
        print(name, "x0", x0.shape, "largest magnitude", np.abs(x0).max())


if __name__ == "__main__":
    main()
