"""Several models in turns, each with the engine that is best for it: `lddgan bench --compare`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.cost import known_cost
from bench.row import Row
from bench.run import MAX_SECONDS, measure, session_rows, side_fields
from bench.timing import Plan, Progress
from engine.registry import Chosen, choose, find_engine, open_engine
from engine.sampler import check_request
from export.bundle import Bundle, find_bundle, open_bundle
from lddgan.errors import BadInput
from lddgan.names import PRECISIONS, DeviceName, Precision
from lddgan.presets import get_preset
from lddgan.progress import Log


def named_bundles(names: str) -> list[Bundle]:
    """Open the bundles of "ddgan-lsun,wddgan-lsun,lsun".

    Raises BadInput for one name alone, a name twice, an unknown one, and one without a bundle.
    """
    given = [name.strip() for name in names.split(",")]
    if not all(given):
        raise BadInput(f"--compare has no name beside a comma: '{names}'; write ddgan-lsun,lsun")
    for name in given:
        get_preset(name)
        if given.count(name) > 1:
            raise BadInput(f"--compare names {name} twice; name each model once")
    if len(given) == 1:
        raise BadInput(f"--compare {names} is one model; name two or more: ddgan-lsun,lsun")
    return [open_bundle(find_bundle(name)) for name in given]


def compare(
    bundles: Sequence[Bundle],
    engine: str,
    precision: Precision | None,
    device: DeviceName,
    *,
    batch: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    log: Log = lambda _: None,
    progress: Progress = lambda _done, _asked: None,
) -> list[Row]:
    """Measure models in turns, without a baseline. Returns a row for each, in their order.

    Arguments are those of `bench.run.benchmark`; with `auto` each model has the engine that is best
    for it. Raises as it does, and BadInput unless all have one device and precision.
    """
    check_request(1, seed, 0, batch)
    chosen = engines_for(bundles, engine, precision, device)
    where = chosen[0].device
    limit = MAX_SECONDS[where] if max_seconds is None else max_seconds
    plan = Plan(where, batch, trials, seed, limit)
    openers = [
        partial(open_engine, bundle, one.engine, one.precision, where, batch=batch, log=log)
        for bundle, one in zip(bundles, chosen, strict=True)
    ]
    sides, here = measure(openers, plan, log, progress)
    fields = [
        side_fields(side, plan, known_cost(bundle.preset), bundle.manifest.verification)
        # memory is that of all models that were open
        | {"peak_memory_mib": None, "gpu_memory_mib": None}
        for side, bundle in zip(sides, bundles, strict=True)
    ]
    return session_rows("compare", sides, fields, here, plan)


def engines_for(
    bundles: Sequence[Bundle], engine: str, precision: Precision | None, device: DeviceName
) -> list[Chosen]:
    """What runs each of the models.

    Raises BadInput naming a bundle that lacks the precision, and unless all run alike.
    """
    chosen: list[Chosen] = []
    for bundle in bundles:
        if engine == "auto" and precision in PRECISIONS:  # `choose` would not name the bundle
            bundle.graph("generator", precision)
        one = choose(engine, device, precision, bundle.precisions, bundle.preset)
        if find_engine(one.engine).needs_graphs:
            bundle.graph("generator", one.precision)
        chosen.append(one)
        first, its = (f"{each.precision} on {each.device}" for each in (chosen[0], one))
        if its != first:
            raise BadInput(
                f"{bundles[0].preset.name} would run in {first} and {bundle.preset.name} in "
                f"{its}; give one --precision, and --device, for all"
            )
    return chosen
