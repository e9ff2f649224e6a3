"""Which of TensorRT's names some files use, derived from the code, looked up in real bindings.

usage: api_names.py FILE...        prints JSON {"used": [...], "missing": [...], "unknown": [...]}

What a variable is, its annotation says: `engine: ICudaEngine`, `module: TensorRT`; the names of
these annotations are those that trt/library.py sets to Any.  A branch of `hasattr` is
followed as the bindings at hand decide, and a function only if it is called from a branch that is.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MODULE = "TensorRT"  # the annotation of the module itself
UNKNOWN = "?"  # what a call on a TensorRT object gave, and no annotation says what it is
LIBRARY = Path(__file__).resolve().parents[4] / "engine" / "backends" / "trt" / "library.py"
Function = ast.FunctionDef


def class_names() -> set[str]:
    """The annotations that stand for a class of TensorRT."""
    return {
        target.id
        for node in ast.parse(LIBRARY.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
        if node.value.id == "Any"
        for target in node.targets
        if isinstance(target, ast.Name)
    }


class Names:
    """The names used by some files, under the bindings `module`."""

    def __init__(self, module: Any, sources: Iterable[str]) -> None:
        self.module, self.classes = module, class_names()
        self.used: set[str] = set()
        self.missing: set[str] = set()
        self.unknown: set[str] = set()
        trees = [ast.parse(source) for source in sources]
        self.functions: dict[str, list[tuple[Function, dict[str, str]]]] = {}
        for tree in trees:
            self._collect(tree, {})
        called = {name for tree in trees for name in calls(tree)}
        self._follow([n for n in self.functions if n not in called or n == "__init__"])

    def _collect(self, node: ast.AST, outer: dict[str, str]) -> None:
        """Every function and method, with what the variables of its class are."""
        types = {**outer, **self.annotations(node)}
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                self.functions.setdefault(child.name, []).append((child, types))
            else:
                self._collect(child, types)

    def annotations(self, node: ast.AST) -> dict[str, str]:
        if isinstance(node, ast.ClassDef):  # of self, wherever a method says what it is
            found = [n for n in ast.walk(node) if isinstance(n, ast.AnnAssign)]
            pairs = [(ast.unparse(n.target), n.annotation) for n in found]
            return self._known([pair for pair in pairs if pair[0].startswith("self.")])
        if isinstance(node, Function):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            pairs = [(a.arg, a.annotation) for a in arguments if a.annotation is not None]
            pairs += [
                (ast.unparse(n.target), n.annotation)
                for n in ast.walk(node)
                if isinstance(n, ast.AnnAssign)
            ]
            return self._known(pairs)
        return {}

    def _known(self, pairs: Iterable[tuple[str, ast.expr]]) -> dict[str, str]:
        named = ((name, ast.unparse(annotation)) for name, annotation in pairs)
        return {name: kind for name, kind in named if kind in self.classes}

    def _follow(self, roots: list[str]) -> None:
        """Walk from the functions that nothing here calls to those that they call."""
        waiting, seen = list(roots), set(roots)
        while waiting:
            for function, outer in self.functions[waiting.pop()]:
                reached = Walk(self, {**outer, **self.annotations(function)})
                reached.block(function.body)
                new = (reached.calls & self.functions.keys()) - seen
                seen |= new
                waiting += new

    def look_up(self, owner: str, name: str) -> None:
        self.used.add(f"{owner}.{name}")
        if not hasattr(self.of(owner), name):
            self.missing.add(f"{owner}.{name}")

    def of(self, owner: str) -> Any:
        """The real module, class or enumeration: "TensorRT", "Builder", "TensorRT.DataType"."""
        found = self.module
        for part in owner.removeprefix(MODULE).lstrip(".").split("."):
            found = getattr(found, part, None) if part else found
        return found


class Walk:
    """One function: the names it uses and the functions it calls in the branches that are taken."""

    def __init__(self, names: Names, types: dict[str, str]) -> None:
        self.names, self.types = names, types
        self.calls: set[str] = set()

    def block(self, statements: list[ast.stmt]) -> bool:
        """True if the block is always left before its end."""
        return any(self.statement(each) for each in statements)

    def statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            self.expression(node.test)
            taken = self.decide(node.test)
            if taken is None:
                return all([self.block(node.body), self.block(node.orelse)])
            return self.block(node.body if taken else node.orelse)
        if isinstance(node, Function):  # a closure is taken to be called
            self.types |= self.names.annotations(node)
            self.block(node.body)
            return False
        if isinstance(node, ast.ClassDef):
            self.subclass(node)
            return False
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            else:
                self.expression(child)
        self.unannotated(node)
        return isinstance(node, ast.Return | ast.Raise)

    def subclass(self, node: ast.ClassDef) -> None:
        """What a subclass of a TensorRT class overrides has to be there."""
        for base in node.bases:
            self.expression(base)
            owner = self.type_of(base)
            for method in node.body:
                if owner and isinstance(method, Function) and not method.name.startswith("__"):
                    self.names.look_up(owner, method.name)
        for method in node.body:
            self.statement(method)

    def expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.IfExp):
            self.expression(node.test)
            taken = self.decide(node.test)
            for branch, wanted in ((node.body, True), (node.orelse, False)):
                if taken in (None, wanted):
                    self.expression(branch)
            return
        if isinstance(node, ast.Call):
            self.calls |= called_name(node)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner == UNKNOWN or self.gives_tensorrt(node.value):
                self.names.unknown.add(ast.unparse(node))
            elif owner is not None:
                self.names.look_up(owner, node.attr)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            else:
                self.expression(child)

    def type_of(self, node: ast.AST) -> str | None:
        """What an expression is: "TensorRT", "Builder", "TensorRT.DataType"; None if unknown."""
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner is not None and owner.startswith(MODULE):
                return f"{owner}.{node.attr}"
        return self.types.get(ast.unparse(node)) if isinstance(node, ast.expr) else None

    def gives_tensorrt(self, node: ast.AST) -> bool:
        """True for the result of a call on a TensorRT object: unknown unless annotated."""
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and self.type_of(node.func.value) is not None
        )

    def unannotated(self, node: ast.stmt) -> None:
        """Note a variable that takes such a result, for `x = call(); x.name` would go unseen."""
        if isinstance(node, ast.Assign) and self.gives_tensorrt(node.value):
            for target in node.targets:
                self.types.setdefault(ast.unparse(target), UNKNOWN)

    def decide(self, test: ast.expr) -> bool | None:
        """What a test of `hasattr` comes to with these bindings; None for any other test."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.decide(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.decide(value) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        if isinstance(test, ast.Call) and ast.unparse(test.func) == "hasattr":
            owner = self.type_of(test.args[0])
            if owner is not None:
                return hasattr(self.names.of(owner), ast.literal_eval(test.args[1]))
        return None


def calls(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= called_name(node)
    return found


def called_name(node: ast.Call) -> set[str]:
    """The last word of what is called."""
    if isinstance(node.func, ast.Name):
        return {node.func.id}
    return {node.func.attr} if isinstance(node.func, ast.Attribute) else set()


def main(*files: str) -> None:
    from engine.backends.trt.build import _mask, flags_for
    from engine.backends.trt.library import Library

    module = importlib.import_module("tensorrt")
    names = Names(module, [Path(file).read_text() for file in files])
    for precision in ("fp32", "fp16"):  # names of flags are strings: they are looked up by use
        flags = flags_for(Library("trt", module, module.__version__), precision)  # type: ignore[arg-type]
        _mask(module.NetworkDefinitionCreationFlag, flags.network)
        _mask(module.BuilderFlag, flags.builder)
        _mask(module.TacticSource, flags.tactics)
    found = {
        "version": module.__version__,
        "used": sorted(names.used),
        "missing": sorted(names.missing),
        "unknown": sorted(names.unknown),
        "flags": list(flags.builder),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
