"""What `lddgan dataset check` found, as a table."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from lddgan.data.decode import KINDS
from lddgan.data.sources import Look, Source

EXAMPLES: Final = 3  # names in a line of the table
REMEDIES: Final = dict.fromkeys(KINDS.values(), "--convert rgb reads them") | dict.fromkeys(
    ("empty", "damaged", "not an image"), "copy or download them again"
)
OTHERWISE: Final = "leave them out, or --on-bad skip"


class Summary:
    """Counts the images of a source by what is good or bad about them."""

    def __init__(self, source: Source) -> None:
        self.source, self.good, self.remarks = source, 0, Counter[str]()
        self.bad = Counter[str]()  # by kind
        self.examples: defaultdict[str, list[str]] = defaultdict(list)  # names, by kind

    def add(self, look: Look) -> None:
        self.remarks.update(look.remarks)
        if look.kind is None:
            self.good += 1
            return
        self.bad[look.kind] += 1
        if self.bad[look.kind] <= EXAMPLES:  # named without where the source is
            path = str(self.source.path)
            short = look.name.removeprefix(path + os.sep).removesuffix(f" in {path}")
            self.examples[look.kind].append(short)

    def lines(self) -> Iterator[str]:
        """The table, what the source says of itself, and the count in the last line."""
        rows = [("images", "what", "what to do", "for example")]
        rows.append((f"{self.good:,}", "good", "", ""))
        rows += [(f"{count:,}", f"- {what}", "", "") for what, count in self.remarks.most_common()]
        for kind, count in self.bad.most_common():
            some = ", ".join(self.examples[kind]) + (", ..." if count > EXAMPLES else "")
            rows.append((f"{count:,}", kind, REMEDIES.get(kind, OTHERWISE), some))
        left = (+self.source.passed_over).most_common()  # of what there is
        rows += [("", "", "", ""), ("files", "passed over", "", "")] if left else []
        rows += [(f"{count:,}", why, "", "") for why, count in left]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        for number, what, remedy, names in rows:
            yield f"{number:>{wide[0]}}  {what:<{wide[1]}}  {remedy:<{wide[2]}}  {names}".rstrip()
        yield from self.source.notes
        yield f"{self.source.path}: {len(self.source):,} images, {self.bad.total():,} bad"
