"""`__all__` tells the truth in every module."""

from __future__ import annotations

import ast


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def _bound(tree: ast.Module) -> set[str]:
    """Return every name that the module's top level binds."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
    return names


def _is_command(node: ast.AST) -> bool:
    """Tell whether click finds a function by its decorator."""
    decorators = getattr(node, "decorator_list", ())
    return any(
        isinstance(one, ast.Call) and ast.unparse(one.func).endswith((".command", ".group"))
        for one in decorators
    )


def test_every_module_says_what_is_public(modules):
    """A module with content has `__all__`."""
    found = [
        module.path
        for module in modules
        if not module.path.endswith("__main__.py")
        if _exported(module.tree) is None
        if any(not isinstance(node, ast.Expr) for node in module.tree.body)
    ]
    assert not found, "\n".join(found)


def test_all_names_exist(modules):
    """Nothing in `__all__` is made up; a package's `__getattr__` may bring names lazily."""
    found = [
        f"{module.path}: {name}"
        for module in modules
        if "__getattr__" not in _bound(module.tree)
        for name in _exported(module.tree) or ()
        if name not in _bound(module.tree)
    ]
    assert not found, "\n".join(found)


def test_public_functions_and_classes_are_exported(modules):
    """What is not exported is named with an underscore."""
    found = [
        f"{module.path}: {node.name}"
        for module in modules
        if not module.path.endswith("__main__.py")
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and node.name not in (_exported(module.tree) or ())
        if not _is_command(node)
    ]
    assert not found, "\n".join(found)
