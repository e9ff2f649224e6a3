"""The decoder's best chunk for each batch size, kept in a file for the next process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from export.graphs import MAX_BATCH
from lddgan.errors import LddganError, why_invalid
from lddgan.files import atomic_write
from lddgan.frozen import Frozen
from lddgan.progress import Log


class Found(Frozen):
    """What the file holds: "MACHINE, batch N" -> chunk."""

    chunks: dict[str, Annotated[int, Field(ge=1, le=MAX_BATCH)]] = Field(default_factory=dict)


class Tuning:
    """What was found on one machine (or for one plan); without `path` nothing is kept."""

    def __init__(self, path: Path | None, machine: str, log: Log) -> None:
        self.path, self.prefix, self.log = path, f"{machine}, batch ", log

    def read(self) -> dict[int, int]:
        """The decoder's best chunks by batch, as far as they are known for the machine."""
        known = self._found().chunks.items()
        return {
            int(name.removeprefix(self.prefix)): chunk
            for name, chunk in known
            if name.startswith(self.prefix)
        }

    def add(self, batch: int, chunk: int) -> None:
        """Add what was measured. Logs the reason if the folder cannot be written."""
        if self.path is None:
            return
        found = Found(chunks={**self._found().chunks, f"{self.prefix}{batch}": chunk})
        try:
            atomic_write(self.path, found.model_dump_json(indent=1).encode())
        except LddganError as error:
            self.log(f"the tuning is not kept: {error}")

    def _found(self) -> Found:
        """What earlier processes found. Logs the reason if the file is damaged."""
        if self.path is None:
            return Found()
        try:
            return Found.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return Found()
        except OSError as error:
            self.log(f"{self.path} is left aside: {error.strerror}")
        except ValidationError as error:
            self.log(f"{self.path} is left aside: {why_invalid(error, 'the file')}")
        return Found()
