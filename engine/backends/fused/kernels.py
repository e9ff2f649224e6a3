"""The Triton kernels: channels-last images, arithmetic in float32.

reference.py, beside this file, says what the functions compute.
"""

from __future__ import annotations

from subprocess import CalledProcessError
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from engine.backends.fused.reference import Ops
from engine.backends.fused.tiles import WARPS, Grid, checked, like, tile_of_program

PROGRAMS: Final = 2048  # that keep a large GPU busy
MOST_PARTS: Final = 256  # into which the pixels of an image are cut for its statistics
SEARCHED: Final = 64  # vectors, and codes, of a tile of the search


@triton.jit
def _moments(
    x, moments, pixels, channels, rows_of_part, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Mean and sum of squared deviations of each channel in one part of an image's pixels.

    Welford's updates in every lane, then the lanes together (Chan, Golub and LeVeque 1983), so that
    a large mean costs no digits.  moments [B,parts,2,channels].
    """
    part, image = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lanes = tl.arange(0, ROWS)
    x += image.to(tl.int64) * pixels * channels
    first = part * rows_of_part
    last = tl.minimum(first + rows_of_part, pixels)
    count = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, COLUMNS], tl.float32)
    spread = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        rows = start + lanes
        inside = (rows < last)[:, None] & (columns < channels)[None, :]
        value = tl.load(x + rows[:, None] * channels + columns[None, :], inside, other=0.0)
        count += (rows < last).to(tl.float32)
        delta = tl.where(inside, value.to(tl.float32) - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))[:, None]
        spread += delta * (value.to(tl.float32) - mean)
    total = (last - first).to(tl.float32)
    anchor = tl.sum(tl.where((lanes == 0)[:, None], mean, 0.0), axis=0)
    off = mean - anchor[None, :]
    average = tl.sum(off * count[:, None], axis=0) / total
    off -= average[None, :]
    spread = tl.sum(spread + off * off * count[:, None], axis=0)
    moments += (image * parts + part) * 2 * channels + columns
    tl.store(moments, anchor + average, columns < channels)
    tl.store(moments + channels, spread, columns < channels)


@triton.jit
def _affine(
    moments, weight, bias, before, affine, pixels, channels, width, rows_of_part, parts, eps,
    weight_step, bias_step, before_step,
    HAS_WEIGHT: tl.constexpr, HAS_BEFORE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The moments of a group, and what they make of the normalisation: y = x * scale + shift.

    width is the channels of a group; affine [B,2,channels]: scales, then shifts.
    """
    image, group = tl.program_id(0), tl.program_id(1)
    lanes, inner = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    columns = group * width + inner
    in_group = inner < width
    inside = (lanes < parts)[:, None] & in_group[None, :]
    places = moments + (image * parts + lanes)[:, None] * 2 * channels + columns[None, :]
    mean = tl.load(places, inside, other=0.0)
    spread = tl.load(places + channels, inside, other=0.0)
    offset = tl.zeros([WIDTH], tl.float32)
    if HAS_BEFORE:
        offset = tl.load(before + image * before_step + columns, in_group, other=0.0)
        offset = offset.to(tl.float32)
    mean += offset[None, :]
    count = tl.maximum(tl.minimum(pixels - lanes * rows_of_part, rows_of_part), 0).to(tl.float32)
    count = tl.where(inside, count[:, None], 0.0)
    total = pixels.to(tl.float32) * width
    is_first = (lanes == 0)[:, None] & (inner == 0)[None, :]
    anchor = tl.sum(tl.sum(tl.where(is_first, mean, 0.0), axis=0), axis=0)
    average = anchor + tl.sum(tl.sum((mean - anchor) * count, axis=0), axis=0) / total
    off = mean - average
    variance = tl.sum(tl.sum(spread + off * off * count, axis=0), axis=0) / total
    scale = tl.zeros([WIDTH], tl.float32) + 1.0 / tl.sqrt(variance + eps)
    shift = (offset - average) * scale
    if HAS_WEIGHT:
        gamma = tl.load(weight + image * weight_step + columns, in_group, other=0.0)
        beta = tl.load(bias + image * bias_step + columns, in_group, other=0.0)
        scale *= gamma.to(tl.float32)
        shift = shift * gamma.to(tl.float32) + beta.to(tl.float32)
    affine += image * 2 * channels + columns
    tl.store(affine, scale, in_group)
    tl.store(affine + channels, shift, in_group)


@triton.jit
def _normalise(
    x, affine, y, pixels, channels,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = x * scale + shift, then SiLU: one tile of one image."""
    image, rows, columns, inside = tile_of_program(pixels, channels, ROWS, COLUMNS)
    affine += image * 2 * channels + columns
    scale = tl.load(affine, columns < channels, other=0.0)
    shift = tl.load(affine + channels, columns < channels, other=0.0)
    start = image * pixels * channels
    places = rows[:, None] * channels + columns[None, :]
    value = tl.load(x + start + places, inside, other=0.0).to(tl.float32)
    value = value * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + start + places, value.to(y.dtype.element_ty), inside)


@triton.jit
def _add(
    h, x, bias, pixels, channels, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """h = (h + x + bias) * scale: one tile of one image."""
    image, rows, columns, inside = tile_of_program(pixels, channels, ROWS, COLUMNS)
    start = image * pixels * channels
    places = rows[:, None] * channels + columns[None, :]
    value = tl.load(h + start + places, inside, other=0.0).to(tl.float32)
    value += tl.load(x + start + places, inside, other=0.0).to(tl.float32)
    value += tl.load(bias + columns, columns < channels, other=0.0)[None, :]
    tl.store(h + start + places, (value * scale).to(h.dtype.element_ty), inside)


@triton.jit
def _nearest(
    vectors, codebook, squares, index, count, codes,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The nearest code of ROWS vectors: every column keeps the best of the codes it sees."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    best = tl.full([ROWS, COLUMNS], float("inf"), tl.float32)
    nearest = tl.zeros([ROWS, COLUMNS], tl.int32)
    for start in range(0, codes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i in tl.static_range(WIDTH):
            value = tl.load(vectors + rows * WIDTH + i, rows < count, other=0.0)
            code = tl.load(codebook + columns * WIDTH + i, columns < codes, other=0.0)
            product += value[:, None] * code[None, :]
        square = tl.load(squares + columns, columns < codes, other=float("inf"))
        distance = square[None, :] - 2.0 * product
        closer = distance < best  # not <=: the first of equals stays
        best = tl.where(closer, distance, best)
        nearest = tl.where(closer, columns[None, :], nearest)
    least = tl.min(best, axis=1)
    nearest = tl.min(tl.where(best == least[:, None], nearest, codes - 1), axis=1)
    tl.store(index + rows, nearest.to(tl.int64), rows < count)


@triton.jit
def _fir_up(
    x, y, height, width, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """FirUp: each output is 3/4 of the nearer and 1/4 of the farther input, along both axes."""
    image, rows, columns, inside = tile_of_program(4 * height * width, channels, ROWS, COLUMNS)
    top, left = rows // (2 * width), rows % (2 * width)
    x += image * height * width * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            above = top // 2 + i * (top % 2 * 2 - 1)
            beside = left // 2 + j * (left % 2 * 2 - 1)
            known = (above >= 0) & (above < height) & (beside >= 0) & (beside < width)
            places = (above * width + beside)[:, None] * channels + columns[None, :]
            weight = (3 - 2 * i) * (3 - 2 * j) / 16
            value = tl.load(x + places, known[:, None] & inside, other=0.0)
            total += weight * value.to(tl.float32)
    y += image * 4 * height * width * channels
    places = rows[:, None] * channels + columns[None, :]
    tl.store(y + places, total.to(y.dtype.element_ty), inside)


@triton.jit
def _fir_down(
    x, y, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """FirDown: the taps 1, 3, 3, 1 over 8 along both axes, zeros beyond the border."""
    image, rows, columns, inside = tile_of_program(out_height * out_width, channels, ROWS, COLUMNS)
    top, left = rows // out_width * STRIDE - PADDING, rows % out_width * STRIDE - PADDING
    x += image * height * width * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(4):
        for j in tl.static_range(4):
            above, beside = top + i, left + j
            known = (above >= 0) & (above < height) & (beside >= 0) & (beside < width)
            places = (above * width + beside)[:, None] * channels + columns[None, :]
            weight = (1 + 2 * (i % 3 > 0)) * (1 + 2 * (j % 3 > 0)) / 64
            value = tl.load(x + places, known[:, None] & inside, other=0.0)
            total += weight * value.to(tl.float32)
    y += image * out_height * out_width * channels
    places = rows[:, None] * channels + columns[None, :]
    tl.store(y + places, total.to(y.dtype.element_ty), inside)


@triton.jit
def _haar(
    x, low, high, height, width, channels,
    INVERSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Haar, or InverseHaar: four pixels of x and one of its bands, whose matrix is symmetric."""
    image, rows, columns, inside = tile_of_program(height * width, channels, ROWS, COLUMNS)
    image *= height * width * channels
    corner = rows // width * 4 * width + rows % width * 2
    a = x + 4 * image + corner[:, None] * channels + columns[None, :]
    b, c = a + channels, a + 2 * width * channels
    d = c + channels
    ll = low + image + rows[:, None] * channels + columns[None, :]
    lh = high + 3 * image + rows[:, None] * 3 * channels + columns[None, :]
    hl, hh = lh + channels, lh + 2 * channels
    if INVERSE:
        a, b, c, d, ll, lh, hl, hh = ll, lh, hl, hh, a, b, c, d
    of_a = tl.load(a, inside, other=0.0).to(tl.float32)
    of_b = tl.load(b, inside, other=0.0).to(tl.float32)
    of_c = tl.load(c, inside, other=0.0).to(tl.float32)
    of_d = tl.load(d, inside, other=0.0).to(tl.float32)
    dtype = x.dtype.element_ty
    tl.store(ll, ((of_a + of_b + of_c + of_d) * 0.5).to(dtype), inside)
    tl.store(lh, ((of_a - of_b + of_c - of_d) * 0.5).to(dtype), inside)
    tl.store(hl, ((of_a + of_b - of_c - of_d) * 0.5).to(dtype), inside)
    tl.store(hh, ((of_a - of_b - of_c + of_d) * 0.5).to(dtype), inside)


def group_norm(
    x: Tensor,
    groups: int,
    eps: float,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    before: Tensor | None = None,
    silu: bool,
) -> Tensor:
    """Normalise in two passes over x: moments, then one multiplication and addition each."""
    (batch, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    moments, rows_of_part = moments_of(x)
    parts = moments.shape[1]
    affine = x.new_empty((batch, 2, channels), dtype=torch.float32)
    y = torch.empty_like(x)
    _affine[batch, groups](
        moments,
        moments if weight is None else weight,
        moments if bias is None else bias,
        moments if before is None else before,
        affine,
        pixels,
        channels,
        channels // groups,
        rows_of_part,
        parts,
        eps,
        *(image_step(vector) for vector in (weight, bias, before)),
        HAS_WEIGHT=weight is not None,
        HAS_BEFORE=before is not None,
        PARTS=triton.next_power_of_2(parts),
        WIDTH=triton.next_power_of_2(channels // groups),
    )
    grid = Grid.of(channels)
    _normalise[grid.tiles(pixels, batch)](x, affine, y, pixels, channels, SILU=silu, **grid.tile)
    return y


def moments_of(x: Tensor) -> tuple[Tensor, int]:
    """Compute mean and squared deviations of each image's parts. Also returns a part's pixels.

    x [B,C,h,w] -> float32 [B,parts,2,C].
    """
    (batch, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    grid = Grid.of(channels)
    rows = part_rows(batch * grid.across, pixels, grid.rows)
    parts = triton.cdiv(pixels, rows)
    moments = checked(x).new_empty((batch, parts, 2, channels), dtype=torch.float32)
    _moments[parts, grid.across, batch](x, moments, pixels, channels, rows, parts, **grid.tile)
    return moments, rows


def part_rows(programs: int, pixels: int, rows: int) -> int:
    """Choose the pixels of a part: a multiple of a tile's rows that keeps the GPU busy."""
    parts = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(pixels, rows), MOST_PARTS)
    return triton.cdiv(triton.cdiv(pixels, parts), rows) * rows


def image_step(vector: Tensor | None) -> int:
    """Elements from one image's values to the next one's. Returns 0 if all images share them."""
    if vector is None or vector.shape[0] == 1:
        return 0
    assert vector.stride(1) == 1, vector.stride()
    return vector.stride(0)


def add_(h: Tensor, x: Tensor, bias: Tensor, scale: float) -> Tensor:
    batch, channels, height, width = checked(h).shape
    assert checked(x).shape == h.shape, (x.shape, h.shape)
    grid, pixels = Grid.of(channels), height * width
    _add[grid.tiles(pixels, batch)](
        h, x, bias, pixels, channels, scale, grid.rows, grid.columns, num_warps=WARPS
    )
    return h


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest code: float32 [B,N,D], codebook float32 [K,D] -> int64 [B,N]; D is small."""
    vectors, codebook = vectors.contiguous(), codebook.contiguous()
    index = vectors.new_empty(vectors.shape[:2], dtype=torch.int64)
    _nearest[(triton.cdiv(index.numel(), SEARCHED),)](
        vectors,
        codebook,
        codebook.square().sum(dim=1),
        index,
        index.numel(),
        len(codebook),
        WIDTH=codebook.shape[1],
        ROWS=SEARCHED,
        COLUMNS=SEARCHED,
        num_warps=WARPS,
    )
    return index


def fir_up(x: Tensor) -> Tensor:
    batch, channels, height, width = checked(x).shape
    y = like(x, channels, 2 * height, 2 * width)
    grid = Grid.of(channels)
    _fir_up[grid.tiles(4 * height * width, batch)](
        x, y, height, width, channels, grid.rows, grid.columns, num_warps=WARPS
    )
    return y


def fir_down(x: Tensor, stride: int, padding: int) -> Tensor:
    batch, channels, height, width = checked(x).shape
    out_height, out_width = ((side + 2 * padding - 4) // stride + 1 for side in (height, width))
    y = like(x, channels, out_height, out_width)
    grid = Grid.of(channels)
    _fir_down[grid.tiles(out_height * out_width, batch)](
        x, y, height, width, out_height, out_width, channels,
        STRIDE=stride, PADDING=padding, **grid.tile,
    )  # fmt: skip
    return y


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    _, channels, height, width = checked(x).shape
    low, high = (like(x, bands * channels, height // 2, width // 2) for bands in (1, 3))
    launch_haar(x, low, high, inverse=False)
    return low, high


def inverse_haar(low: Tensor, high: Tensor) -> Tensor:
    batch, channels, height, width = checked(low).shape
    assert checked(high).shape == (batch, 3 * channels, height, width), (low.shape, high.shape)
    x = like(low, channels, 2 * height, 2 * width)
    launch_haar(x, low, high, inverse=True)
    return x


def launch_haar(x: Tensor, low: Tensor, high: Tensor, *, inverse: bool) -> None:
    batch, channels, height, width = low.shape
    grid = Grid.of(channels)
    _haar[grid.tiles(height * width, batch)](
        x, low, high, height, width, channels, INVERSE=inverse, **grid.tile
    )


# A kernel that does not compile or fit the GPU; a compiler that cannot build Triton's launcher.
ERRORS: Final = (TritonError, CalledProcessError)
TRITON: Final = Ops(group_norm, add_, nearest_code, fir_up, fir_down, haar, inverse_haar, ERRORS)
