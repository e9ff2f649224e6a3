"""Build plans of graphs with the real builder; prints what they are, in JSON.

usage: build_plans.py PRESET PRECISION PROFILE FILE...   PRESET is JSON; needs `tensorrt`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from export.graphs import GraphSpec, graph_specs, most_images
from lddgan.names import Precision
from lddgan.preset import Preset


def build(values: str, precision: Precision, profile: str, *files: str) -> None:
    from engine.backends.trt.build import BuildOptions, Profile

    preset = Preset.model_validate_json(values)
    most = most_images(preset)
    options = BuildOptions(precision=precision, profile=Profile.parse(profile, most))
    specs = graph_specs(preset)
    found = {}
    for path in map(Path, files):
        which = path.name.partition(".")[0]
        found[which] = build_one(path, specs[which], options)
    print(json.dumps(found))


def build_one(path: Path, spec: GraphSpec, options: Any) -> dict[str, Any]:
    """Build one plan; what it is, what was reported, and the tensors that the parser saw."""
    from engine.backends.trt.build import build_graph
    from engine.backends.trt.library import load

    library = load("trt")
    heard: list[int] = []
    built = build_graph(
        library,
        path,
        spec,
        options,
        timing_cache=None,
        workspace=None,
        progress=lambda done, total: heard.append(done),
    )
    return {
        "bytes": len(built.plan),
        "seconds": built.seconds,
        "heard": heard,
        "tensors": tensors(library, path),
    }


def tensors(library: Any, path: Path) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype of every input and output, read by the parser alone."""
    from engine.backends.trt.build import parse

    logger = library.logger()
    builder = library.module.Builder(logger)
    network = builder.create_network(0)
    parser = parse(library, logger, network, path)
    found = [network.get_input(index) for index in range(network.num_inputs)]
    found += [network.get_output(index) for index in range(network.num_outputs)]
    listed = [(each.name, list(each.shape), each.dtype.name) for each in found]
    del parser
    return listed


if __name__ == "__main__":
    build(*sys.argv[1:])
