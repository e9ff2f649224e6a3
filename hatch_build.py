"""Build hook of the wheel, which holds one package: `lddgan`, with every other folder under it.

In the repository the folders lie side by side and `import engine` finds engine/.  In the wheel it
is `lddgan.engine`, so that it neither hides a project's own engine.py nor is hidden by it.
"""

from __future__ import annotations

import ast
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "lddgan"
MOVED = ("engine", "export", "bench", "cli")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "gpu_report", "studies", "results")


class OnePackage(BuildHookInterface):
    """Packs a copy of the folders whose imports name their places under `lddgan`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.staging = Path(tempfile.mkdtemp())
        if version == "editable":
            return  # the repository goes on the path as it is (dev-mode-dirs)
        root = Path(self.root)
        shutil.copytree(root / PACKAGE, self.staging, ignore=LEFT_OUT, dirs_exist_ok=True)
        for name in MOVED:
            if (root / name).is_dir():
                shutil.copytree(root / name, self.staging / name, ignore=LEFT_OUT)
            else:
                shutil.copy(root / f"{name}.py", self.staging)
        for path in self.staging.rglob("*.py"):
            path.write_text(with_moved_imports(path.read_text("utf-8"), path.name), "utf-8")
        build_data["force_include"][str(self.staging)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.staging)


def with_moved_imports(source: str, name: str) -> str:
    """Put `lddgan.` before every module of MOVED that a program imports.

    Raises ValueError for `import engine.x` without `as`, which would bind another name.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            imported = [(str(node.module), "from")]
        elif isinstance(node, ast.Import):
            imported = [(alias.name, alias.asname) for alias in node.names]
        else:
            continue
        for module, bound in imported:
            if module.partition(".")[0] in MOVED:
                if bound is None:
                    raise ValueError(f"{name}:{node.lineno}: write `import {module} as ...`")
                line = lines[node.lineno - 1]
                lines[node.lineno - 1] = line.replace(f" {module}", f" {PACKAGE}.{module}", 1)
    return "".join(lines)
