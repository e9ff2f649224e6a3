"""The shape of the house: which way imports point, and how long things may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("lddgan", "export", "engine", "bench", "cli")  # each imports those before it
ROOF = {"lddgan", "lddgan.__main__"}  # the public face, which imports all of them when asked
FILE_LINES, FUNCTION_LINES = 400, 60
PRODUCT_LINES = 22_500  # raised only in a commit of its own
TOOLS = ("bench/gpu_report", "bench/studies")  # run from the repository, in no wheel
TOOL_LINES = 1_600
STORIES = {"Sampler.stream", "train", "export_bundle"}  # long and linear, a heading for each part

PRODUCT = sorted(path for name in FOLDERS[:-1] for path in (ROOT / name).rglob("*.py"))
PRODUCT.append(ROOT / "cli.py")
TREES = {path: ast.parse(path.read_text()) for path in PRODUCT}
NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PRODUCT
}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of ours that a file imports anywhere but for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else str(node.module)
        else:
            yield from imports(node)


ARROWS = {name: {to for to in imports(TREES[path]) if to in NAMES} for name, path in NAMES.items()}


def functions(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, int]]:
    """Every function of a file and its lines."""
    for node in ast.iter_child_nodes(tree):
        name = f"{scope}{getattr(node, 'name', '')}"
        if isinstance(node, ast.FunctionDef):
            yield name, (node.end_lineno or 0) - node.lineno + 1
        yield from functions(node, f"{name}." if isinstance(node, ast.ClassDef) else scope)


def test_arrows_between_folders_point_one_way() -> None:
    rank = {folder: place for place, folder in enumerate(FOLDERS)}
    upward = [
        f"{name} -> {to}"
        for name, targets in ARROWS.items()
        for to in targets
        if name not in ROOF and rank[name.split(".")[0]] < rank[to.split(".")[0]]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    inner = {name: targets for name, targets in ARROWS.items() if name not in ROOF}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_files_functions_and_the_whole_stay_small() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lines = {path: len(path.read_text().splitlines()) for path in [*PRODUCT, *tests]}
    assert [f"{path}: {count}" for path, count in lines.items() if count > FILE_LINES] == []
    long = [
        f"{path.relative_to(ROOT)} {name}: {count}"
        for path, tree in TREES.items()
        for name, count in functions(tree)
        if count > FUNCTION_LINES and name not in STORIES
    ]
    assert long == []
    tools = [path for path in PRODUCT if str(path.relative_to(ROOT)).startswith(TOOLS)]
    tool_lines = sum(lines[path] for path in tools)
    assert tool_lines <= TOOL_LINES
    assert sum(lines[path] for path in PRODUCT) - tool_lines <= PRODUCT_LINES
