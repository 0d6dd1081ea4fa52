"""Rules of CONVENTIONS that a reader of the source can check."""

from __future__ import annotations

import ast

# Starting programs elsewhere, each with its reason.
MAY_START_PROGRAMS = {
    "kvedge/processes.py": "the one gateway",
    "kvedge/keeping.py": "the gateway's other half, a process of its own",
    "kvedge/edgesim/": "is packed into a .deb by itself and imports nothing of kvedge",
}
# Making tasks without a group, each with its reason.
MAY_MAKE_TASKS = {
    "kvedge/node/runtime.py": "adds to TaskGroup what it lacks: cancelling from outside, readiness",
}
# Ending the process by oneself, each with its reason.
MAY_EXIT = {
    "kvedge/cli/": "the command line",
    "kvedge/edgesim/": "programs of their own, packed into a .deb",
    "kvedge/keeping.py": "runs as a process of its own",
    "kvedge/site/publishing.py": "runs as a process of its own, in the other network namespace",
}
STARTERS = {
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "os": {"fork", "forkpty", "popen", "posix_spawn", "posix_spawnp", "system"},
    "pty": {"fork", "spawn"},
    "subprocess": {"Popen", "call", "check_call", "check_output", "getoutput", "run"},
}


def _calls(tree: ast.AST):
    """Yield (receiver, name, node) of each call of an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node


def _allowed(path: str, exceptions: dict[str, str]) -> bool:
    return any(path.startswith(exception) for exception in exceptions)


def test_programs_are_started_in_one_place(modules):
    """Only kvedge.processes starts programs."""
    found = [
        f"{module.path}:{node.lineno}: {receiver}.{name}"
        for module in modules
        for receiver, name, node in _calls(module.tree)
        if name in STARTERS.get(receiver, ()) or (receiver == "os" and name.startswith("spawn"))
        if not _allowed(module.path, MAY_START_PROGRAMS)
    ]
    assert not found, "\n".join(found)


def test_programs_are_started_by_module_name(modules):
    """Nobody hides a start behind `from subprocess import run`."""
    found = [
        f"{module.path}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS
        if {alias.name for alias in node.names} & STARTERS[node.module or ""]
    ]
    assert not found, "\n".join(found)


def test_tasks_belong_to_a_group(modules):
    """A task that nobody waits for loses its error, so tasks are made by TaskGroups only."""
    found = [
        f"{module.path}:{node.lineno}: {receiver}.{name}"
        for module in modules
        for receiver, name, node in _calls(module.tree)
        if name in {"create_task", "ensure_future"}
        if not receiver.rstrip("_").endswith(("group", "tasks"))
        if not _allowed(module.path, MAY_MAKE_TASKS)
    ]
    assert not found, "\n".join(found)


def test_tasks_are_named(modules):
    """A task without a name is a riddle in a log."""
    found = [
        f"{module.path}:{node.lineno}"
        for module in modules
        for _, name, node in _calls(module.tree)
        if name == "create_task" and "name" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not found, "\n".join(found)


def test_no_shell_is_asked(modules):
    """Programs are started by argument lists; no text goes through a shell."""
    found = [
        f"{module.path}:{node.lineno}"
        for module in modules
        for _, _, node in _calls(module.tree)
        for keyword in node.keywords
        if keyword.arg == "shell"
        if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not found, "\n".join(found)


def test_the_process_ends_in_the_command_line_only(modules):
    """Exit codes are decided in one room."""
    found = [
        f"{module.path}:{node.lineno}"
        for module in modules
        for receiver, name, node in _calls(module.tree)
        if (receiver, name) in {("sys", "exit"), ("os", "_exit")}
        if not module.path.endswith("/__main__.py") and not _allowed(module.path, MAY_EXIT)
    ]
    assert not found, "\n".join(found)
