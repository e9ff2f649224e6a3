"""The noise against the published vectors, an independent scalar version, and the normal law."""

import math
import re
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lddgan import noise
from lddgan.noise import normal_from_words, normals, philox4x32, sampler_noise

exactly = settings(deadline=None, derandomize=True, database=None, max_examples=50)
word = st.integers(0, 2**32 - 1)
index = st.integers(0, 2**63 - 1)
stream_number = st.integers(0, 16)


# ---- the words ----

# Random123, tests/kat_vectors, rows "philox4x32 10": counter, key, output
KAT_VECTORS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def from_hex(text: str) -> np.ndarray:
    return np.array([int(w, 16) for w in text.split()], np.uint32)


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def scalar_word(seed: int, stream: int, image: int, element: int) -> int:
    counter = [element // 4, stream, image % 2**32, image >> 32]
    return scalar_philox(counter, [seed % 2**32, seed >> 32])[element % 4]


@pytest.mark.parametrize(("counter", "key", "expected"), KAT_VECTORS)
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    words = philox4x32(from_hex(counter), from_hex(key))
    assert words.dtype == np.uint32
    assert words.tolist() == from_hex(expected).tolist()
    scalar = scalar_philox(from_hex(counter).tolist(), from_hex(key).tolist())
    assert scalar == from_hex(expected).tolist()


@exactly
@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), st.tuples(word, word))
def test_philox_equals_the_scalar_one(
    counters: list[tuple[int, ...]], key: tuple[int, int]
) -> None:
    words = philox4x32(np.array(counters, np.uint32), np.array(key, np.uint32))
    assert words.tolist() == [scalar_philox(list(c), list(key)) for c in counters]


def test_philox_broadcasts_keys() -> None:
    counter, key = from_hex(KAT_VECTORS[2][0]), from_hex(KAT_VECTORS[2][1])
    keys = np.stack([key, key ^ np.uint32(1)])[:, None]  # [2, 1, 2]
    counters = np.stack([counter, counter + np.uint32(1), counter * np.uint32(3)])  # [3, 4]
    words = philox4x32(counters, keys)
    assert words.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            assert words[i, j].tolist() == scalar_philox(counters[j].tolist(), keys[i, 0].tolist())


# ---- from words to normals ----

# the ends, the middle, and both edges of the central interval |u - 1/2| <= 0.425
EDGES = [round((0.5 + side * 0.425) * 2**32) for side in (-1, 1)]
SPECIAL = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
SPECIAL += [edge + step for edge in EDGES for step in range(-3, 4)]


def some_words(count: int) -> np.ndarray:
    """SPECIAL, words of every magnitude from both ends, and Philox's own."""
    small = np.array([2**n + n for n in range(31)], np.uint32)
    counters = np.zeros((count, 4), np.uint32)
    counters[:, 0] = np.arange(count)
    drawn = philox4x32(counters, np.array([7, 0], np.uint32))[:, 0]
    return np.concatenate([np.array(SPECIAL, np.uint32), small, ~small, drawn])


def q_of(words: np.ndarray) -> np.ndarray:
    return (words.astype(np.float64) + 0.5) / 2**32 - 0.5


def scalar_normal(w: int) -> float:
    """The formulas at the top of lddgan/noise.py, one Python float operation after another."""

    def horner(coefficients: tuple[float, ...], v: float) -> float:
        y = coefficients[0]
        for c in coefficients[1:]:
            y = y * v + c
        return y

    q = (w + 0.5) * 2.0**-32 - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return (q * horner(noise.A, r)) / horner(noise.B, r)
    m, e = math.frexp(0.5 - abs(q))
    if m < 0.7:
        m, e = 2.0 * m, e - 1
    s = (m - 1.0) / (m + 1.0)
    log_p = e * noise.LN2 + (s + s) * horner(noise.ATANH, s * s)
    r = math.sqrt(-log_p) - 1.6
    return math.copysign(horner(noise.C, r) / horner(noise.D, r), q)


def test_every_operation_is_the_documented_one() -> None:
    words = some_words(5000)
    x = noise._inverse_normal_cdf(q_of(words))
    expected = [scalar_normal(int(w)) for w in words]
    assert [v.hex() for v in x.tolist()] == [v.hex() for v in expected]


def test_float64_error_against_mpmath() -> None:
    words = some_words(1000)
    with mpmath.workdps(40):
        for w, x in zip(
            words.tolist(), noise._inverse_normal_cdf(q_of(words)).tolist(), strict=True
        ):
            # one Newton step from x lands on the exact quantile: its length is the error of x
            u = (mpmath.mpf(w) + 0.5) / 2**32
            error = (mpmath.ncdf(x) - u) / mpmath.npdf(x)
            assert abs(error / x) <= 1e-15, (w, x)


def test_float32_against_scipy() -> None:
    words = some_words(200_000)
    x = normal_from_words(words)
    assert x.dtype == np.float32
    # the nearer end keeps every bit of p, as 1 - p does not near 1
    q = q_of(words)
    expected = np.copysign(scipy.special.ndtri(0.5 - np.abs(q)), q).astype(np.float32)
    centre = np.abs(q) < 0.01  # where ndtri(0.5 - |q|) itself cancels
    expected[centre] = scipy.special.ndtri(0.5 + q[centre]).astype(np.float32)
    assert (np.abs(x - expected) <= np.spacing(np.abs(expected))).all()
    assert (x == expected).mean() >= 0.9999


def test_ends_symmetry_and_order() -> None:
    assert normal_from_words(np.array([0, 2**32 - 1], np.uint32)).tolist() == [
        float(np.float32(-6.3379577545537892525)),
        float(np.float32(6.3379577545537892525)),
    ]
    words = np.unique(some_words(20_000))
    x = normal_from_words(words)
    assert (normal_from_words(~words) == -x).all()
    assert (np.diff(x) >= 0).all()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4)])
def test_normals_keep_the_shape_of_the_words(shape: tuple[int, ...]) -> None:
    words = np.full(shape, 5, np.uint32)
    x = normal_from_words(words)
    assert x.shape == shape and x.dtype == np.float32
    assert (words == 5).all()


# ---- which normal is whose ----

# from scalar_word and mpmath's erfinv at 50 digits, not from lddgan/noise.py
# seed, stream, image, element => float32
KNOWN = [
    (0, 0, 0, 0, "-0x1.05f4a0p-2"),
    (0, 0, 0, 1, "0x1.2d769ep+0"),
    (0, 1, 0, 99, "-0x1.2ef9e4p+1"),
    (0, 2, 0, 4095, "-0x1.853ab8p+0"),
    (42, 0, 7, 5, "-0x1.45a72ap-2"),
    (42, 8, 99999, 4095, "0x1.87e2b2p-3"),
    (2**32, 0, 0, 0, "0x1.327634p+1"),
    (2**32 + 5, 3, 2, 2, "0x1.30ab10p+1"),
    (5, 3, 2, 2, "0x1.b846b6p+0"),
    (1, 0, 2**32, 3, "-0x1.c05e22p+0"),
    (1, 0, 2**32 + 1, 0, "-0x1.4e8620p-2"),
    (2**63 - 1, 16, 2**63 - 1, 12287, "-0x1.6c3ae6p-2"),
]


@pytest.mark.parametrize(("seed", "stream", "image", "element", "expected"), KNOWN)
def test_known_answers(seed: int, stream: int, image: int, element: int, expected: str) -> None:
    x = normals(seed, stream, image, 1, element + 1)
    assert float(x[0, element]) == float.fromhex(expected)


@exactly
@given(index, stream_number, index, st.integers(1, 30), st.data())
def test_element_is_word_e_mod_4_of_block_e_div_4(
    seed: int, stream: int, image: int, size: int, data: st.DataObject
) -> None:
    element = data.draw(st.integers(0, size - 1))
    x = normals(seed, stream, image, 1, size)
    assert x.shape == (1, size) and x.dtype == np.float32 and x.flags.c_contiguous
    expected = np.float32(scalar_normal(scalar_word(seed, stream, image, element)))
    assert x[0, element] == expected


@exactly
@given(index, stream_number, index, st.integers(1, 9), st.integers(1, 21), st.data())
def test_an_image_does_not_depend_on_its_batch(
    seed: int, stream: int, first: int, count: int, size: int, data: st.DataObject
) -> None:
    first = min(first, 2**63 - count)
    i = data.draw(st.integers(0, count - 1))
    batch = normals(seed, stream, first, count, size)
    alone = normals(seed, stream, first + i, 1, size + 3)
    assert batch[i].tobytes() == alone[0, :size].tobytes()


@pytest.mark.parametrize("size", [4 * noise.SLICE_BLOCKS + 5, 100, 4095])
def test_slices_leave_no_seam(size: int) -> None:
    count = 2 + 8 * noise.SLICE_BLOCKS // size
    first = 2**32 - 1  # the images cross into the high word
    batch = normals(3, 1, first, count, size)
    rows = [normals(3, 1, first + i, 1, size)[0] for i in range(count)]
    assert batch.tobytes() == np.stack(rows).tobytes()


def test_sampler_noise_has_its_streams_and_shapes() -> None:
    x_T, z, posterior = drawn = sampler_noise(9, 4, 3, latent_shape=(2, 5, 3), nz=7, steps=4)
    assert drawn._fields == ("x_T", "z", "noise")
    assert x_T.shape == (3, 2, 5, 3)
    assert z.shape == (4, 3, 7)
    assert posterior.shape == (4, 3, 2, 5, 3)
    assert {array.dtype for array in drawn} == {np.dtype(np.float32)}
    assert all(array.flags.c_contiguous for array in drawn)
    assert (x_T.reshape(3, 30) == normals(9, 0, 4, 3, 30)).all()
    for k in range(4):
        assert (z[k] == normals(9, 1 + 2 * k, 4, 3, 7)).all()
        assert (posterior[k].reshape(3, 30) == normals(9, 2 + 2 * k, 4, 3, 30)).all()
    assert x_T[1, 1, 2, 0] == np.float32(scalar_normal(scalar_word(9, 0, 5, 15 + 2 * 3)))


def test_numpy_integers_count_as_integers() -> None:
    expected = normals(2**32 + 5, 1, 2**33, 2, 6)
    for kind in (np.int64, np.uint64):
        assert (normals(kind(2**32 + 5), kind(1), kind(2**33), kind(2), kind(6)) == expected).all()


# ---- the law: fixed seeds, so each bound holds or fails for good ----


def test_moments() -> None:
    n = 2**20
    x = normals(2024, 0, 0, 256, n // 256).astype(np.float64).ravel()
    # E[x^p] for p = 1..4, and Var[x^p] = E[x^2p] - E[x^p]^2
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((x**power).mean() - moment) <= 4 * math.sqrt(variance / n), power


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_kolmogorov_smirnov(stream: int) -> None:
    x = normals(11, stream, 2**32 - 5, 10, 20_000).ravel()
    assert scipy.stats.kstest(x, "norm").pvalue > 0.001


def test_each_lane_of_a_block_is_normal() -> None:
    x = normals(12, 2, 0, 4, 40_000).reshape(-1, 4)
    for lane in range(4):
        assert scipy.stats.kstest(x[:, lane], "norm").pvalue > 0.001


def test_images_streams_seeds_and_lanes_are_uncorrelated() -> None:
    n = 40_000
    seeds = [0, 1, 2**32, 2**32 + 1]
    images = [0, 1, 2, 2**32, 2**32 + 1]
    rows = [normals(s, k, i, 1, n)[0] for s in seeds for k in range(3) for i in images]
    lanes = normals(0, 0, 3, 1, 4 * n).reshape(n, 4).T
    shifted = [rows[0][(np.arange(n) + lag) % n] for lag in (1, 2, 3, 4, 8, 64)]
    correlation = np.corrcoef(np.stack([*rows, *lanes, *shifted], dtype=np.float64))
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    # 2415 pairs, each of standard error 1/sqrt(n): 5 of them is a chance of 0.1 %
    assert np.abs(off_diagonal).max() <= 5 / math.sqrt(n)
    assert abs(off_diagonal.std() * math.sqrt(n) - 1) <= 0.1


# ---- bad input ----

GOOD = {"seed": 0, "stream": 0, "first": 0, "count": 1, "size": 4}
TOP = 2**63 - 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, f"seed is -1, and must be an integer in 0..{TOP}."),
        ({"seed": 2**63}, f"seed is {2**63}, and must be an integer in 0..{TOP}."),
        ({"seed": 0.5}, f"seed is 0.5, and must be an integer in 0..{TOP}."),
        ({"seed": math.nan}, f"seed is nan, and must be an integer in 0..{TOP}."),
        ({"first": -1}, f"first is -1, and must be an integer in 0..{TOP}."),
        ({"first": 2**63}, f"first is {2**63}, and must be an integer in 0..{TOP}."),
        (
            {"first": TOP, "count": 2},
            f"first + count - 1 is {2**63}, and must be an integer in 0..{TOP}.",
        ),
        ({"count": 0}, f"count is 0, and must be an integer in 1..{TOP}."),
        ({"count": -3}, f"count is -3, and must be an integer in 1..{TOP}."),
        ({"stream": -1}, f"stream is -1, and must be an integer in 0..{2**32 - 1}."),
        ({"stream": 2**32}, f"stream is {2**32}, and must be an integer in 0..{2**32 - 1}."),
        ({"size": 0}, f"size is 0, and must be an integer in 1..{2**34}."),
        ({"size": 2**34 + 1}, f"size is {2**34 + 1}, and must be an integer in 1..{2**34}."),
    ],
)
def test_bad_input_is_named_with_its_range(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        normals(**{**GOOD, **bad})


@pytest.mark.parametrize(
    "bad",
    [{"seed": -1}, {"first": TOP, "count": 2}, {"count": 0}, {"steps": 0}, {"nz": 0}],
)
def test_sampler_noise_refuses_the_same(bad: dict[str, int]) -> None:
    good: dict[str, Any] = {"seed": 0, "first": 0, "count": 1, "nz": 4, "steps": 2}
    with pytest.raises(ValueError, match="must be an integer in"):
        sampler_noise(latent_shape=(1, 2, 2), **{**good, **bad})
