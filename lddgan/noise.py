"""Noise of the sampler: the same bits on any machine, batch size, shard and engine.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") makes words:

    key     = (seed low 32, seed high 32)
    counter = (block, stream, image index low 32, image index high 32)
    element e of an image, row-major, is word e mod 4 of block e div 4

    stream 0: x_T      stream 1+2k: z of call k      stream 2+2k: posterior noise of call k
    (call 0 is t = T-1)

A word w becomes a normal deviate by Algorithm AS 241, PPND16 (Wichura 1988), of u = (w + 1/2)/2^32.
The CUDA kernel repeats these formulas in this order, in float64, every operation rounded by itself
(no FMA), where horner(c, v) is (..((c[0]*v + c[1])*v + c[2])..)*v + c[n]:

    q = (w + 0.5) * 2^-32 - 0.5                              exact
    if |q| <= 0.425:
        r = 0.180625 - q*q
        x = (q * horner(A, r)) / horner(B, r)
    else:
        r = sqrt(-log(0.5 - |q|)) - 1.6                      0.5 - |q| is exact
        x = copysign(horner(C, r) / horner(D, r), q)
    float32(x), to nearest even

    log(p):  m, e = frexp(p);  if m < 0.7: m = 2*m, e = e - 1
             s = (m - 1) / (m + 1)
             log(p) = e*LN2 + (s + s) * horner(ATANH, s*s)

PPND16's third interval (sqrt(-log p) > 5) is never reached: p >= 2^-33, whose root is 4.78.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lddgan.preset import Preset

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Philox4x32: multipliers M and key increments W (Weyl sequence), Salmon et al. 2011, section 4.3
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
ROUNDS = 10
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

# AS 241, PPND16: numerators A, C and denominators B, D, highest power first
# fmt: off
A = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
    4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
    1.3314166789178437745e2, 3.3871328727963666080e0,
)
B = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
    2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
    4.2313330701600911252e1, 1.0,
)
C = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
    1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
    4.63033784615654529590e0, 1.42343711074968357734e0,
)
D = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
    1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
    2.05319162663775882187e0, 1.0,
)
# fmt: on

# log m = 2 atanh(s) = 2s (1 + s^2/3 + s^4/5 + ...); |s| <= 3/17 leaves 1.4e-17 after s^18
ATANH = tuple(1.0 / n for n in range(19, 0, -2))
LN2 = 0.69314718055994530942

MAX_INDEX = 2**63 - 1
SLICE_BLOCKS = 8192  # made at a time: temporaries of 256 KiB stay in cache


class Noise(NamedTuple):
    """All the randomness of one run of the sampler, float32; [k] of z and noise is for call k."""

    x_T: F32  # [B, C, h, w]
    z: F32  # [T, B, nz]
    noise: F32  # [T, B, C, h, w]


def draw(preset: Preset, first: int, count: int, seed: int) -> Noise:
    """Draw the noise of images first..first+count-1 of a seed, for a preset's T calls."""
    shape, nz = preset.latent_shape, preset.generator.nz
    return sampler_noise(seed, first, count, latent_shape=shape, nz=nz, steps=preset.steps)


def sampler_noise(
    seed: int, first: int, count: int, *, latent_shape: tuple[int, int, int], nz: int, steps: int
) -> Noise:
    """Draw the noise of images first..first+count-1 of a seed, for T = steps calls.

    latent_shape is (C, h, w), nz the length of the generator's z.
    Raises ValueError for what `normals` refuses, and for steps < 1.
    """
    steps = check_range("steps", steps, 1, 2**31 - 1)
    seeds, images = _images(seed, first, count)
    return _noise(seeds, images, latent_shape, nz, steps)


def draw_at(preset: Preset, seeds: Sequence[int], indices: Sequence[int]) -> Noise:
    """Draw the noise of any images, indices[i] of seeds[i], for a preset's T calls.

    Raises ValueError for none, and for a seed or index outside 0..2^63-1.
    """
    for name, numbers in (("seed", seeds), ("index", indices)):
        for number in numbers:
            check_range(name, number, 0, MAX_INDEX)
    check_range("count", len(seeds), 1, MAX_INDEX)
    keys, images = np.array(seeds, np.uint64), np.array(indices, np.uint64)
    return _noise(keys, images, preset.latent_shape, preset.generator.nz, preset.steps)


def normals(seed: int, stream: int, first: int, count: int, size: int) -> F32:
    """Draw size standard normals for each of the images first..first+count-1: [count, size].

    Row i is the noise of image first+i, whatever first and count are.
    Raises ValueError if seed or an image index is outside 0..2^63-1, stream outside 0..2^32-1,
    count below 1, or size outside 1..2^34.
    """
    stream = check_range("stream", stream, 0, 2**32 - 1)
    return _normals(*_images(seed, first, count), {stream: size})[0]


def _images(seed: int, first: int, count: int) -> tuple[U64, U64]:
    # the seed [1] and the indices [count] of consecutive images
    seed = check_range("seed", seed, 0, MAX_INDEX)
    first = check_range("first", first, 0, MAX_INDEX)
    count = check_range("count", count, 1, MAX_INDEX)
    check_range("first + count - 1", first + count - 1, 0, MAX_INDEX)
    return np.array([seed], np.uint64), np.arange(count, dtype=np.uint64) + np.uint64(first)


def _noise(
    seeds: U64, images: U64, latent_shape: tuple[int, int, int], nz: int, steps: int
) -> Noise:
    size = latent_shape[0] * latent_shape[1] * latent_shape[2]
    sizes = {0: size}
    for k in range(steps):
        sizes |= {1 + 2 * k: nz, 2 + 2 * k: size}
    x_T, *others = _normals(seeds, images, sizes)
    return Noise(
        x_T.reshape(-1, *latent_shape),
        np.stack(others[0::2]),
        np.stack(others[1::2]).reshape(steps, -1, *latent_shape),
    )


def _normals(seeds: U64, images: U64, sizes: Mapping[int, int]) -> list[F32]:
    # seeds [1], of all images, or [count]; images [count]; stream -> size  =>  [count, size] each
    sizes = {stream: check_range("size", size, 1, 2**34) for stream, size in sizes.items()}
    blocks = [-(-size // 4) for size in sizes.values()]
    stream = np.repeat(np.array([*sizes], np.uint32), blocks)
    block = np.concatenate([np.arange(count, dtype=np.uint32) for count in blocks])
    keys = np.stack((seeds & LOW, seeds >> HALF), axis=-1).astype(np.uint32)
    out = np.empty((len(images) * len(block), 4), np.float32)
    for start in range(0, len(out), SLICE_BLOCKS):
        stop = min(start + SLICE_BLOCKS, len(out))
        row, column = np.divmod(np.arange(start, stop), len(block))
        counter = np.empty((stop - start, 4), np.uint32)
        counter[:, 0], counter[:, 1] = block[column], stream[column]
        counter[:, 2], counter[:, 3] = images[row] & LOW, images[row] >> HALF
        key = keys[0] if len(keys) == 1 else keys[row]
        out[start:stop] = normal_from_words(philox4x32(counter, key))
    rows = out.reshape(len(images), -1)
    starts = 4 * np.cumsum([0, *blocks])
    return [
        np.ascontiguousarray(rows[:, start : start + size])
        for start, size in zip(starts, sizes.values(), strict=False)
    ]


def philox4x32(counter: U32, key: U32) -> U32:
    """Philox4x32-10: counter [..., 4] and key [..., 2] => four random words [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = (key[..., i].astype(np.uint64) for i in range(2))
    for _ in range(ROUNDS):
        product0, product1 = M0 * c0, M1 * c2
        c0, c1 = (product1 >> HALF) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> HALF) ^ c3 ^ k1, product0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def normal_from_words(words: U32) -> F32:
    """Turn uint32 words into standard normals of the same shape, in +-6.34."""
    q = (words.reshape(-1).astype(np.float64) + 0.5) * 2.0**-32 - 0.5
    return _inverse_normal_cdf(q).astype(np.float32).reshape(words.shape)


def _inverse_normal_cdf(q: F64) -> F64:  # q = u - 1/2, [n]
    r = 0.180625 - q * q
    x: F64 = (q * _horner(A, r)) / _horner(B, r)
    tails = np.flatnonzero(np.abs(q) > 0.425)  # 15 % of the words
    x[tails] = _tail(q[tails])
    return x


def _tail(q: F64) -> F64:
    r = np.sqrt(-_log(0.5 - np.abs(q))) - 1.6
    return np.copysign(_horner(C, r) / _horner(D, r), q)


def _log(p: F64) -> F64:
    # not np.log, whose last bit depends on the machine
    m, e = np.frexp(p)
    below = m < 0.7
    m, e = np.where(below, 2.0 * m, m), e - below
    s = (m - 1.0) / (m + 1.0)
    return e * LN2 + (s + s) * _horner(ATANH, s * s)


def _horner(coefficients: tuple[float, ...], v: F64) -> F64:
    y = np.full_like(v, coefficients[0])
    for c in coefficients[1:]:
        y *= v
        y += c
    return y


def check_range(name: str, value: Any, low: int, high: int) -> int:
    if not low <= value <= high or value != int(value):
        raise ValueError(f"{name} is {value}, and must be an integer in {low}..{high}.")
    return int(value)
