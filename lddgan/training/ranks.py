"""Training on several processes at once: which part of a batch each takes, and means over all.

`torchrun` starts the processes ("ranks").  The gradients are summed here and not by
DistributedDataParallel, which R1's gradient of a gradient and the two optimisers do not fit into.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from lddgan.errors import BadInput, LddganError
from lddgan.files import sole_writer
from lddgan.memory import is_out_of_memory
from lddgan.preset import GROUP


class Ranks(NamedTuple):
    """This process among those that train together, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same on each."""
        if self.world > 1:
            with ends_named():
                distributed.all_reduce(values)
            values /= self.world
        return values

    def any(self, here: bool) -> bool:
        """Whether `here` is true in at least one process."""
        if self.world == 1:
            return here
        return bool(self.mean(torch.tensor(float(here), device=self.device)))

    def union(self, here: set[str]) -> set[str]:
        """The union of all processes' sets."""
        if self.world == 1:
            return here
        found: list[set[str] | None] = [None] * self.world
        with ends_named():
            distributed.all_gather_object(found, here)
        return set().union(*(one for one in found if one is not None))

    @contextmanager
    def sole_writer(self, folder: Path) -> Iterator[None]:
        """Hold the right to write into `folder`, for all by the first process.

        Raises LddganError, in every process, if another training has it.
        """
        refusal = None
        with ExitStack() as held:
            if self.is_first:
                try:
                    held.enter_context(sole_writer(folder))
                except LddganError as error:
                    refusal = error
            if self.any(refusal is not None):
                raise refusal or LddganError(f"the first process cannot write into {folder}")
            yield

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))  # which may lie channels-last

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.world > 1:
            with ends_named():
                for tensor in tensors:
                    distributed.broadcast(tensor.detach(), 0)


@contextmanager
def ends_named() -> Iterator[None]:
    """Turn what fails here when another process has ended into LddganError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        cause = str(error).partition("\n")[0]
        raise LddganError(f"another process of this training has ended: {cause}") from error


def kind_of(device: str | None) -> str:
    """cpu or cuda; None: a GPU if there is one. Raises BadInput if CUDA is not available."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"torch {torch.__version__} finds no CUDA GPU here; use --device cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started, if it has; otherwise train alone.

    Raises BadInput if there are too few GPUs, or another program started the processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    kind = kind_of(device)
    if world == 1:
        yield Ranks(0, 1, torch.device(kind))
        return
    if "LOCAL_RANK" not in os.environ:
        raise BadInput("no LOCAL_RANK: start the processes with torchrun, or unset WORLD_SIZE")
    local = int(os.environ["LOCAL_RANK"])
    place, exchange = torch.device(kind), "gloo"
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise BadInput(f"process {local} finds {count} GPUs; start a process for each GPU")
        torch.cuda.set_device(local)
        place, exchange = torch.device(kind, local), "nccl"
    with ends_named():
        distributed.init_process_group(exchange)
    try:
        yield Ranks(distributed.get_rank(), world, place)
    finally:
        distributed.destroy_process_group()


def rows_of(part: int, parts: int, batch: int, group: int = GROUP) -> Tensor:
    """The rows of a batch that form one of its `parts` equal parts, int64 [batch/parts].

    Image i of B shares its minibatch deviation with i + B/4, i + B/2 and i + 3B/4.  A part consists
    of whole groups, in the order in which the discriminator groups them when it sees the part
    alone.  Without such a deviation `group` is 1.  Raises BadInput if that is not possible.
    """
    if parts == 1:
        return torch.arange(batch)
    if batch % (group * parts):
        kind = f"parts of whole groups of {group}" if group > 1 else "equal parts"
        raise BadInput(
            f"a batch of {batch} cannot be cut into {parts} {kind}; choose a multiple of "
            f"{group * parts}, or fewer processes (or --accumulate)"
        )
    return torch.arange(batch).view(group, parts, -1)[:, part].flatten()
