"""Making and renewing lock files."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from images import building, cache, locking, recipe, scanning, trees
from kvedge.progress import silent

if TYPE_CHECKING:
    from kvedge.progress import Progress

__all__ = ["relock"]


def relock(
    name: str, *, fresh: bool, progress: Progress = silent
) -> tuple[Path, list[locking.Change]]:
    """Write the lock of a recipe and return its file and what changed.

    Args:
        name: a recipe's name, or the path of one's own.
        fresh: build the package layers anew, without a lock, in a store that is thrown away.
        progress: hears of the build.
    """
    known = recipe.load(name)
    plain = dataclasses.replace(known, lock=None) if fresh else known
    plan = building.plan_of(plain)
    layers = [step for step in plan.steps if step.layer is not None]
    with tempfile.TemporaryDirectory(prefix="kvedge-lock-", dir=_scratch()) as folder:
        store = cache.Store(Path(folder)) if fresh else cache.default_store()
        entries = [building.make_step(plan, step, store, progress=progress) for step in layers]
        with (entries[-1].path / "root.tar").open("rb") as stream:
            found = scanning.packages(trees.TarTree(stream))
    own = locking.own(known)
    lock = locking.lock_of(known.name, (one for one in found if one.name not in own))
    before = dict(known.lock.packages) if known.lock else {}
    file = _file(name)
    temporary = file.with_suffix(".lock.new")
    temporary.write_text(locking.render(lock), encoding="utf-8")
    temporary.replace(file)
    return file, locking.compare(before, dict(lock.packages))


def _file(name: str) -> Path:
    stem, at, arch = name.partition(".toml")
    if at:
        return Path(f"{stem}{arch}.lock")
    return Path(str(importlib.resources.files("images") / "recipes" / f"{name}.lock"))


def _scratch() -> Path:
    # Three layers need more than the memory file system should give.
    return Path(os.environ.get("TMPDIR", "/var/tmp"))  # noqa: S108 - mkdtemp makes our own in it
