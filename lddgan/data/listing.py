"""Which files of a folder or an archive are images; the others are counted by reason."""

from __future__ import annotations

import errno
import os
import stat
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from io import FileIO
from lzma import LZMAError
from pathlib import Path
from typing import IO, Final

from lddgan.data.decode import BadImage, NotEncoded, open_image
from lddgan.errors import BadInput

SUFFIXES: Final = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# What photo programs, NAS and operating systems leave beside images, in lower case.
LEFT_OUT: Final = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "@__thumb", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs", "_thumbs", "thumbnails", "_thumbnails"),
)
RUN_FILES: Final = ("autoencoder.losses.jsonl", "generator.losses.jsonl")  # in a run's folder
# What reading a damaged or unusual member of a zip file raises.
BAD_MEMBER: Final = (
    *(zipfile.BadZipFile, zlib.error, LZMAError, OSError, EOFError, RuntimeError),
    UnicodeDecodeError,  # of its name
)
NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # errors of broken links
TWICE: Final = "named twice through links"
MOST_REASONS: Final = 8  # in a sentence


def why_folder_left_out(name: str) -> str | None:
    """Why the images in a folder of this name are passed over; None if they are not."""
    if name.casefold() in LEFT_OUT:
        return f"in {name}"
    return "in hidden folders" if name.startswith(".") and name.strip(".") else None


def why_of_training(folder: str) -> str | None:
    is_run = any(os.path.exists(os.path.join(folder, file)) for file in RUN_FILES)
    return "in folders of trainings" if is_run else None


def why_passed_over(name: str, open_file: Callable[[], IO[bytes]]) -> str | None:
    """Why a file is passed over, in words that follow a number; None if it is an image.

    `name` may have folders before it.  A file without a suffix is opened.
    """
    *folders, file = name.split("/")
    suffix = os.path.splitext(file)[1].lower().rstrip(".")
    if why := next(filter(None, map(why_folder_left_out, folders)), None):
        return why
    if file.startswith("."):
        return "hidden"
    if suffix and not suffix[1:].isdigit():  # clip.0001
        return None if suffix in SUFFIXES else suffix
    try:
        with open_file() as stream, warnings.catch_warnings(action="ignore"):
            open_image(stream)
    except NotEncoded:
        return "without a suffix"
    except (BadImage, *BAD_MEMBER):
        pass  # reading it will say why
    return None


def list_images(root: Path, passed_over: Counter[str]) -> list[str]:
    """Paths of the images in a folder and all in it, sorted, from `root`; counts the other files.

    Links are followed, after all else: each real folder is listed once, each real file named once
    (hard links are files of their own).  Raises BadInput if a folder cannot be listed.
    """
    names: list[str] = []
    listed = set[str]()  # real paths of folders
    linked: dict[str, str] = {}  # real path of a file -> a link to it
    waiting = deque([""])  # folders, then links and what is neither folder nor file

    def add(name: str, real: str) -> None:
        if why := why_passed_over(os.path.basename(name), partial(FileIO, real)):
            passed_over[why] += 1
        else:
            names.append(name)

    while waiting:
        at = waiting.popleft()
        path = os.path.join(root, at)
        real = os.path.realpath(path)
        try:
            mode = os.stat(path).st_mode
            if real in linked or real in listed:
                passed_over[TWICE] += 1
            elif stat.S_ISREG(mode):
                linked[real] = at
            elif not stat.S_ISDIR(mode):
                passed_over["pipes, sockets or devices"] += 1
            elif at and (why := why_folder_left_out(os.path.basename(at)) or why_of_training(path)):
                passed_over[why] += count_files(path)
            else:
                listed.add(real)
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    name = os.path.join(at, entry.name)
                    if entry.is_file(follow_symlinks=False):
                        add(name, os.path.join(real, entry.name))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.appendleft(name)
                    else:
                        waiting.append(name)
        except OSError as error:
            if error.errno not in NOWHERE or not os.path.islink(path):
                remedy = "let this user read it, or move it away"
                raise BadInput(f"{path} cannot be listed ({error.strerror}); {remedy}") from error
            passed_over["broken links"] += 1
    for real, link in linked.items():
        folder, file = os.path.split(real)
        if folder in listed and not why_passed_over(file, partial(FileIO, real)):
            passed_over[TWICE] += 1  # it was named where it is
        else:
            add(link, real)
    return sorted(names)


def count_files(folder: str) -> int:
    """Number of files in a folder and all in it; a folder that may not be listed counts as one."""
    unknown: list[OSError] = []
    return sum(len(names) for _, _, names in os.walk(folder, onerror=unknown.append)) + len(unknown)


def describe_passed_over(passed_over: Counter[str]) -> str:
    """What is said of the files passed over: "; passed over: 3 .heic, 1 hidden", or nothing."""
    told = ", ".join(f"{count:,} {why}" for why, count in most_frequent(passed_over))
    return f"; passed over: {told}" if told else ""


def most_frequent(passed_over: Counter[str]) -> list[tuple[str, int]]:
    """Reasons and numbers of files, the most frequent first; the rest of many as "others"."""
    most = passed_over.most_common(MOST_REASONS)
    rest = passed_over.total() - sum(count for _, count in most)
    return [*most, ("others", rest)] if rest else most
