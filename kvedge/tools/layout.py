"""Where things are: the cache, the sources that the project carries, each family's folder.

A family's folder is named by a hash over everything that its content depends on, and files come
into it by rename only: a file that is there is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import kvedge
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvedge.tools.recipes import Family

__all__ = ["cache_dir", "family_dir", "locked", "sources_dir"]

_SOURCE_FILES = ("go.mod", "go.sum", "*.go", "*/*.go")


def cache_dir() -> Path:
    """Return the folder for what can be made again: KVEDGE_CACHE, else the user's cache."""
    own = os.environ.get("KVEDGE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "kvedge"


def sources_dir() -> Path:
    """Return the folder with one Go module a family: from the wheel, else from the checkout.

    Raises:
        ToolMissing: neither is there.
    """
    package = Path(kvedge.__file__).parent
    for folder in (package / "_project" / "tools", package.parent / "tools"):
        if (folder / "etcd" / "go.mod").is_file():
            return folder
    raise errors.ToolMissing(
        "tools",
        f"sources of the tools not found beside {str(package)!r}",
        hint="install kvedge again, from its wheel or as a whole checkout",
    )


def family_dir(family: Family, *, cache: Path, sources: Path) -> Path:
    """Return the family's folder in the cache, whether it exists or not."""
    digest = hashlib.sha256(repr((family.version, family.tools, family.debian)).encode())
    for module in family.modules:
        folder = sources / module
        files = {file for pattern in _SOURCE_FILES for file in folder.glob(pattern)}
        for file in sorted(files):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"\n{file.relative_to(sources)} {content}".encode())
    return cache / "tools" / f"{family.name}-{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def locked(file: Path, *, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a file; `busy` is called once if somebody else holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
