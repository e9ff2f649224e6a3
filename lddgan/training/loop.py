"""The one loop of both trainings: read, step, show, keep, stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lddgan.checkpoint import Model, TrainedAutoencoder, save_checkpoint
from lddgan.data.feed import Feed
from lddgan.data.images import Images
from lddgan.errors import BadInput, LddganError, Stopped
from lddgan.memory import memory_named
from lddgan.pictures import Pixels
from lddgan.preset import AutoencoderTraining, Preset, Training
from lddgan.progress import Meter
from lddgan.signals import stop_signals
from lddgan.torch_settings import flushing_denormals
from lddgan.training.log import TrainingLog
from lddgan.training.ranks import Ranks, joined
from lddgan.training.run_folder import finished, paths_of, steps_of
from lddgan.training.settings import Settings
from lddgan.training.state import TOTAL, Keeper, seed_step

GRIDS: Final = 20  # pictures in a run, about
GRID_STEPS: Final = 100  # between two of them, at least
NAMED_IMAGES: Final = 8  # of a batch whose loss is not finite

Losses = dict[str, float]  # by name
TensorLosses = dict[str, Tensor]
Result = TypeVar("Result", Model, TrainedAutoencoder)


class Work(NamedTuple, Generic[Result]):
    """What a stage does, once it is known where and in how many steps."""

    parts: Mapping[str, Any]  # what has a state: networks and optimisers, by name
    step: Callable[[Tensor, int, float], Losses]  # (this process's rows, step, progress 0..1)
    picture: Callable[[], Pixels]  # [N,H,W,3]: images that show how far the training is
    result: Callable[[dict[str, Any]], Result]  # provenance -> what is written


@dataclass(frozen=True)
class Stage(Generic[Result]):
    """One of the two trainings."""

    name: str  # of its files, and in messages
    number: int  # of its seeds
    preset: Preset
    images: Images
    cfg: AutoencoderTraining | Training  # of the preset: batch and epochs
    group: int  # images of a batch that cannot be parted
    origin: dict[str, str]  # what else must be the same where a run is resumed, by name
    start: str  # digest of the weights to begin with, or NOTHING
    schedules: Sequence[str]  # what ends with the last step
    remedy: str  # for too little memory
    begin: Callable[[Settings, Ranks, int], Work[Result]]  # the int is the number of steps


class NotFinite(Exception):
    """A loss or a gradient that is NaN or infinite; no weight has been changed by it."""


def train(stage: Stage[Result], settings: Settings) -> Result:
    """Train to the end, from where an earlier run was if `settings.resume`; write the result.

    The state is kept in `settings.out`, and so are snapshots of what would be the result.  Raises
    BadInput for what does not fit together; LddganError if another training writes there; Stopped,
    after saving, on SIGTERM, SIGHUP and Ctrl-C; LddganError naming step and batch if a loss or a
    gradient is not finite; OutOfMemory.
    """
    told = f"{{}} has too little memory to train the {stage.name}; {stage.remedy}"
    with (
        joined(settings.device) as ranks,
        ranks.sole_writer(settings.out),
        memory_named(told),
        torch.random.fork_rng(),
        flushing_denormals(),
    ):
        # What is read, and what an earlier run left
        result_path, state_path = paths_of(settings.out, stage.name, settings.resume)
        flip = stage.preset.training.flip
        feed = settings.feed(stage.images, ranks, stage.cfg.batch, stage.group, flip)
        if not ranks.is_first:  # only what the feed skips is told by the others too
            settings = replace(settings, log=lambda line: None)
        begun = f"{stage.name} to begin with"
        run = settings.run(stage.preset, stage.images) | stage.origin | {begun: stage.start}
        keeper = Keeper(state_path, run, settings.resume)
        total = choose_total(stage, settings, keeper, feed.order.per_epoch, result_path)

        # The networks
        seed_step(settings.seed, stage.number, total)  # of the initial weights
        work = stage.begin(settings, ranks, total)
        for name, state in keeper.parts.items():
            work.parts[name].load_state_dict(state)

        def states() -> dict[str, Any]:
            return {name: part.state_dict() for name, part in work.parts.items()}

        def result(step: int) -> Result:
            made = settings.provenance(len(stage.images), step, total, keeper.elapsed)
            return work.result(made | {"begun with": keeper.run[begun]})

        # The steps
        with (
            Meter(stage.name, keeper.first, total, settings.log) as meter,
            TrainingLog(settings.out, stage.name, keeper.first, total)
            if ranks.is_first
            else nullcontext() as log,
            stop_signals() as stop,
            closing(feed.batches(keeper.first, total)) as batches,
        ):
            for number, rows in enumerate(batches, start=keeper.first):
                seed_step(settings.seed, stage.number, number)
                try:
                    rows = rows.to(ranks.device, non_blocking=True)
                    losses = work.step(rows, number, number / total)
                except NotFinite as error:
                    told = f"{error} at {describe_step(feed, number, keeper)}"
                    raise LddganError(f"training the {stage.name} failed: {told}") from error
                done = number + 1
                meter.show(done, losses)
                stopped = ranks.any(stop.asked is not None)
                if log is not None:
                    log.note(number, losses)
                    if done < total and (stopped or keeper.is_due):
                        keeper.keep(done, states())
                    if settings.keep_every and done % settings.keep_every == 0:
                        snapshot = result_path.with_stem(f"{result_path.stem}-{done:06d}")
                        save_checkpoint(snapshot, result(done))
                    if done == total or done % max(total // GRIDS, GRID_STEPS) == 0:
                        log.add_picture(done, work.picture())
                if stopped and done < total:
                    told = f"stopped after step {done:,} of {total:,}; go on with --resume"
                    raise Stopped(told, stop.asked)
            if log is not None:
                keeper.keep(total, states())
                log.finish()
        if bad := ranks.union(feed.bad):
            settings.log(f"{stage.name}: {len(bad)} bad images were skipped")

        # The result
        trained = result(total)
        if ranks.is_first:
            save_checkpoint(result_path, trained)
            if settings.discard_state:
                state_path.unlink(missing_ok=True)
        return trained


def choose_total(
    stage: Stage[Any], settings: Settings, keeper: Keeper, per_epoch: int, result: Path
) -> int:
    """The number of steps in all: as asked for, else the resumed run's, else the preset's.

    Logs what changes with it.  Raises BadInput if so many have been made already.
    """
    first, asked = keeper.first, settings.epochs and settings.epochs * per_epoch
    given = (settings.steps, asked, keeper.total, stage.cfg.epochs * per_epoch)
    total = next(steps for steps in given if steps is not None)
    if total < first:
        raise BadInput(f"{keeper.path} is after step {first:,}: {total:,} steps in all are too few")
    if settings.resume and total == first == steps_of(result):
        raise BadInput(finished(result, keeper.path))
    if keeper.total not in (None, total):
        told = f"{stage.name}: {total:,} steps instead of {keeper.total:,}"
        if stage.schedules:
            end = "ends" if len(stage.schedules) == 1 else "end"
            told += f": {' and '.join(stage.schedules)} now {end} at step {total:,}"
        settings.log(told)
    keeper.run[TOTAL] = str(total)
    return total


def describe_step(feed: Feed, number: int, keeper: Keeper) -> str:
    """What a step that failed saw, what may help and where to go on, for people."""
    epoch, position = divmod(number, feed.order.per_epoch)
    index = feed.order.at(number)[0][feed.rows].tolist()
    more = ", ..." if len(index) > NAMED_IMAGES else ""
    listed = ", ".join(map(str, index[:NAMED_IMAGES]))
    kept = f"the last good state is {keeper.path}, after step {keeper.kept:,}"
    return (
        f"step {number}, batch {position} of epoch {epoch} (images {listed}{more}); lower the "
        f"learning rate or check the images; {kept if keeper.kept else 'nothing was saved yet'}"
    )


def descend(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    parts: Iterable[Mapping[str, Tensor]],
    ranks: Ranks,
) -> Losses:
    """Make one step of `optimizer` on the losses of `network`; returns them, summed over `parts`.

    Each part is backpropagated before the next is computed.  Raises NotFinite, on every process
    and changing no weight, if a loss (its mean over all of them) or a gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for losses in parts:
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    means = ranks.mean(torch.stack([loss.float() for loss in sums.values()])).tolist()
    values = dict(zip(sums, means, strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(f"its loss {name} is {value}")
    ranks.average_gradients(network.parameters())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    size = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(size):
        raise NotFinite(f"its gradient is {size}")
    optimizer.step()
    return values
