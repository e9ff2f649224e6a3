"""Looking at every image of a source, for `lddgan dataset check`, and a table of the findings."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

from lddgan.data.decode import KINDS, BadImage, fit
from lddgan.data.listing import most_frequent
from lddgan.data.sources import Source
from lddgan.workers import read_ahead

EXAMPLES: Final = 3  # names in a line of the table
REMEDIES: Final = dict.fromkeys(KINDS.values(), "--convert rgb reads them") | dict.fromkeys(
    ("empty", "damaged", "not an image"), "copy or download them again"
)
OTHERWISE: Final = "leave them out, or --on-bad skip"


class Look(NamedTuple):
    """What was found when an image was looked at."""

    name: str
    bad: BadImage | None  # why it cannot be trained on
    remarks: frozenset[str]  # what people should know of a good one


def check_images(source: Source, size: int, processes: int) -> Iterator[Look]:
    """Yield for each image of a source whether one of `size` can be made of it."""
    numbers = range(len(source))
    with closing(read_ahead(partial(check, source, size), numbers, processes)) as looks:
        yield from looks


def check(source: Source, size: int, index: int) -> Look:
    source.remarks.clear()
    try:
        fit(source.read(index), size)
    except BadImage as error:
        return Look(source.name(index), error, frozenset())
    return Look(source.name(index), None, frozenset(source.remarks))


class Summary:
    """Counts the images of a source by what is good or bad about them."""

    def __init__(self, source: Source) -> None:
        self.source, self.good, self.remarks = source, 0, Counter[str]()
        self.bad: defaultdict[str, list[str]] = defaultdict(list)  # names, by kind

    def add(self, look: Look) -> None:
        self.remarks.update(look.remarks)
        if look.bad is None:
            self.good += 1
        else:
            self.bad[look.bad.kind].append(look.name)

    def lines(self) -> Iterator[str]:
        """The table, what the source says of itself, and the count in the last line."""
        path, left = str(self.source.path), most_frequent(self.source.passed_over)
        rows = [("images", "what", "what to do", "for example"), (f"{self.good:,}", "good", "", "")]
        rows += [(f"{count:,}", f"- {what}", "", "") for what, count in self.remarks.most_common()]
        for kind, names in sorted(self.bad.items(), key=lambda each: -len(each[1])):
            some = ", ".join(names[:EXAMPLES]).replace(path + os.sep, "").replace(f" in {path}", "")
            some += ", ..." if len(names) > EXAMPLES else ""
            rows.append((f"{len(names):,}", kind, REMEDIES.get(kind, OTHERWISE), some))
        rows += [("", "", "", ""), ("files", "passed over", "", "")] if left else []
        rows += [(f"{count:,}", why, "", "") for why, count in left]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        for number, what, remedy, example in rows:
            yield f"{number:>{wide[0]}}  {what:<{wide[1]}}  {remedy:<{wide[2]}}  {example}".rstrip()
        yield from self.source.notes
        yield f"{path}: {len(self.source):,} images, {len(self.source) - self.good:,} bad"
