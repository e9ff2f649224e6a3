"""What a service answers under load: python -m bench.studies.serve_load --clients 1,8,32,128,400

Starts `lddgan serve`, and in turns measures the engine by itself as `lddgan bench` does, and lets
wrk (Debian has it) ask the service for images that nobody asked for before, from so many
connections at once.  All of it shares the machine's cores: `apart` is the ratio of the two rates if
the CPU time of wrk is taken off.  Prints medians over the rounds; --save keeps each as a row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from bench.machine import machine
from bench.row import Row, add_rows, check_rows_file, new_row, now
from bench.timing import run_trial
from engine.registry import open_engine
from engine.sampler import Sampler
from export.bundle import find_bundle
from lddgan.errors import LddganError
from lddgan.extras import usable_cores

LUA: Final = """
local threads = {}
function setup(thread) thread:set("id", #threads); table.insert(threads, thread) end
function init(args) seed = args[1]; n, ok, busy, other = id, 0, 0, 0 end
function request()
  n = n + 2 -- of at most two threads
  return wrk.format("GET", "/v1/images/" .. wrk.path:sub(2) .. "/" .. seed .. "/" .. n .. ".png")
end
function response(status)
  if status == 200 then ok = ok + 1 elseif status == 503 then busy = busy + 1
  else other = other + 1 end
end
function done(summary, latency)
  local function sum(name)
    local all = 0
    for _, thread in ipairs(threads) do all = all + thread:get(name) end
    return all
  end
  io.write(string.format(
    '\\nfound {"ok": %d, "busy": %d, "other": %d, "lost": %d, "seconds": %f, "p50": %f, "p99": %f}',
    sum("ok"), sum("busy"), sum("other"), summary.errors.connect + summary.errors.read +
    summary.errors.write + summary.errors.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@contextmanager
def service(options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Address and process number of a running `lddgan serve`."""
    words = [sys.executable, "-m", "lddgan", "serve", "--port", "0", *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = [process.stdout.readline() for _ in range(2)]
            if not told[1].startswith("http"):
                raise LddganError("the service did not start")
            yield told[1].strip(), process.pid
        finally:
            process.terminate()


def engine_rate(sampler: Sampler, batch: int, seconds: float, seed: int) -> float:
    """Images per second of the engine by itself, as `lddgan bench` measures them."""
    times, start = [], perf_counter()
    while perf_counter() - start < seconds:
        times.append(run_trial(sampler, seed, batch)[0].end_to_end)
    return 1000 * batch / median(times)


def load(url: str, model: str, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    """What wrk found, and its seconds of CPU."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA)
        script.flush()
        words = ["wrk", f"-t{min(2, clients)}", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
        words += ["-s", script.name, f"{url}/{model}", "--", str(seed)]
        before = os.times()
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        after = os.times()
    (found,) = re.findall("found (.*)", told)
    cpu = after.children_user + after.children_system
    return json.loads(found) | {"cpu": cpu - before.children_user - before.children_system}


def resident_mib(process: int) -> float:
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kib) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clients", default="1,8,32,128,400")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="further words of `lddgan serve`")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args(arguments)
    try:
        study(asked)
    except LddganError as error:
        sys.exit(f"error: {error}")


def study(asked: argparse.Namespace) -> None:
    """Measure in turns; print and keep what was found."""
    if asked.save is not None:
        check_rows_file(asked.save)
    counts = [int(count) for count in asked.clients.split(",")]
    options = ["--dataset", asked.dataset, "--engine", asked.engine, "--batch", str(asked.batch)]
    bundle, here, session = find_bundle(asked.dataset), machine(), now()
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    with (
        service([*options, *asked.options.split()]) as (url, process),
        open_engine(bundle, asked.engine, batch=asked.batch) as sampler,
    ):
        engine_rate(sampler, asked.batch, 2, 0)
        for turn in range(asked.rounds):
            for place, clients in enumerate(counts):
                seed = 1000 * (1 + turn * len(counts) + place)
                own = engine_rate(sampler, asked.batch, asked.seconds, seed)
                one = load(url, sampler.preset.name, clients, asked.seconds, seed)
                found[clients].append(one | {"bench": own, "rss_mib": resident_mib(process)})
        described = {
            "dataset": sampler.preset.name,
            "engine": sampler.backend.name,
            "precision": sampler.backend.precision,
            "where": sampler.backend.where,
            "random_weights": sampler.random_weights,
            "machine": here,
            "batch": asked.batch,
            "device": sampler.backend.device,
        }
    rows = []
    for clients, rounds in found.items():
        facts = {name: median(one[name] for one in rounds) for name in rounds[0]}
        facts |= rates(rounds, usable_cores()) | {"clients": clients, "rounds": len(rounds)}
        rows.append(new_row("serving", session, trials=len(rounds), facts=facts, **described))
    print_rows(rows)
    if asked.save is not None:
        add_rows(rows, asked.save)


def rates(rounds: Sequence[dict[str, Any]], cores: int) -> dict[str, float]:
    """Images per second, and their ratios to those of `lddgan bench`."""
    rate = [one["ok"] / one["seconds"] for one in rounds]
    shares = [1 - one["cpu"] / (cores * one["seconds"]) for one in rounds]
    ratio = [it / one["bench"] for it, one in zip(rate, rounds, strict=True)]
    apart = [it / share for it, share in zip(ratio, shares, strict=True)]
    return {"images_per_second": median(rate), "ratio": median(ratio), "apart": median(apart)}


def print_rows(rows: Sequence[Row]) -> None:
    first = rows[0]
    print(f"{first.dataset}, {first.engine} {first.precision}, batches of {first.batch}")
    print("| clients | images/s | bench | ratio | apart | p50 ms | p99 ms | 503 | RSS MiB |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        f = row.facts
        print(
            f"| {f['clients']} | {f['images_per_second']:.0f} | {f['bench']:.0f} "
            f"| {f['ratio']:.2f} | {f['apart']:.2f} | {f['p50']:.0f} | {f['p99']:.0f} "
            f"| {f['busy']:.0f} | {f['rss_mib']:.0f} |"
        )
        if f["other"] or f["lost"]:
            print(f"other answers: {f['other']:.0f}, lost: {f['lost']:.0f}")


if __name__ == "__main__":
    main()
