"""The page's noise, in Node, against known answers and against lddgan.noise."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

from export.web.folder import PAGE
from lddgan.noise import normals
from tests.lddgan.test_noise import KNOWN

pytestmark = pytest.mark.web

Call = tuple[int, int, int, int, int]  # seed, stream, first, count, size

PROGRAM = """
import { createHash } from "node:crypto";
const { normals } = await import(process.argv[2]);
for (const [seed, stream, first, count, size] of JSON.parse(process.argv[3])) {
  const drawn = normals(BigInt(seed), stream, BigInt(first), count, size);
  const digest = createHash("sha256").update(Buffer.from(drawn.buffer)).digest("hex");
  console.log(JSON.stringify([drawn.at(-1), digest]));
}
"""


def in_node(calls: list[Call]) -> list[tuple[float, str]]:
    """(last normal, sha256 of all) of each call of noise.mjs."""
    asked = [(str(seed), stream, str(first), *rest) for seed, stream, first, *rest in calls]
    words = ["node", "--input-type=module", "-", (PAGE / "noise.mjs").as_uri(), json.dumps(asked)]
    told = subprocess.run(words, input=PROGRAM, capture_output=True, text=True, check=True).stdout
    return [tuple(json.loads(line)) for line in told.splitlines()]


def test_known_answers() -> None:
    found = in_node([(seed, stream, image, 1, e + 1) for seed, stream, image, e, _ in KNOWN])
    assert [last for last, _ in found] == [float.fromhex(expected) for *_, expected in KNOWN]


def test_every_bit_is_that_of_python() -> None:
    calls = [
        (0, 0, 0, 1, 1_000_001),  # some of them in the tails
        (42, 8, 99_999, 10, 4_097),
        (2**32 + 5, 3, 2**32 - 6, 20, 4_099),  # both halves of an index
        (2**53 + 1, 5, 2**53 + 1, 3, 13),  # no double holds them
        (2**63 - 1, 16, 2**63 - 10, 10, 12_287),
    ]
    expected = [hashlib.sha256(normals(*call).tobytes()).hexdigest() for call in calls]
    assert [digest for _, digest in in_node(calls)] == expected
