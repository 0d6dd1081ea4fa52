"""Results of build steps, kept by the key of everything that went into them.

An entry is a folder that appears whole, by a rename, or not at all: a killed build leaves only
a folder in `tmp`. Two builds of one step wait for each other by a lock file. Each entry's
`entry.json` holds the size and digest of its files; an entry that does not match is thrown away
and made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvedge import errors, tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LIMIT_VARIABLE", "Entry", "Store", "default_store", "limit", "sha256_file"]

_MANIFEST = "entry.json"
_SPARE_SECONDS = 3600.0
_LIMIT_GIB = 8.0
LIMIT_VARIABLE = "KVEDGE_IMAGE_CACHE_GIB"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kept result."""

    key: str
    path: Path
    files: dict[str, dict[str, Any]]
    """Relative file name to `{"size": bytes, "sha256": hex}`."""
    facts: dict[str, Any]
    """What the step told about its result."""

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(one["size"] for one in self.files.values())


class Store:
    """A folder of entries, shared by all builds of one user."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """Return an entry whose files have the recorded sizes, else None."""
        path = self.root / "steps" / key
        try:
            raw = json.loads((path / _MANIFEST).read_bytes())
            whole = all(
                (path / name).stat().st_size == one["size"] for name, one in raw["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole:
            return None
        with contextlib.suppress(OSError):
            os.utime(path / _MANIFEST)
        return Entry(key=key, path=path, files=raw["files"], facts=raw["facts"])

    def verify(self, entry: Entry) -> bool:
        """Return whether every file still has its recorded digest."""
        return all(
            sha256_file(entry.path / name) == one["sha256"] for name, one in entry.files.items()
        )

    def drop(self, key: str) -> None:
        """Forget an entry."""
        path = self.root / "steps" / key
        if not path.exists():
            return
        doomed = self._temporary()
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed / "entry")
        shutil.rmtree(doomed, ignore_errors=True)

    def make(self, key: str, work: Callable[[Path], dict[str, Any]]) -> Entry:
        """Return the entry, made by `work(folder)` if it is not there.

        `work` fills the folder and returns facts. Others that want the same key wait for it.
        """
        if found := self.find(key):
            return found
        with self._locked(key):
            if found := self.find(key):
                return found
            self.drop(key)
            folder = self._temporary()
            try:
                facts = work(folder)
                files = {
                    str(path.relative_to(folder)): {
                        "size": path.stat().st_size,
                        "sha256": sha256_file(path),
                    }
                    for path in sorted(folder.rglob("*"))
                    if path.is_file() and not path.is_symlink()
                }
                manifest = {"key": key, "made": int(time.time()), "files": files, "facts": facts}
                (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
                folder.chmod(0o755)
                target = self.root / "steps" / key
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)
            except (OSError, errors.BuildFailed) as cause:
                if _lacks_space(cause):
                    raise errors.KvedgeError(
                        f"cannot keep image step {key!r}: no space left in {str(self.root)!r}",
                        hint="kvedge image gc --keep 2, or set KVEDGE_CACHE to a larger disk",
                    ) from cause
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        made = self.find(key)
        if made is None:
            raise errors.KvedgeError(f"image step {key!r} vanished from {str(self.root)!r}")
        return made

    def entries(self) -> Iterator[tuple[Entry, float]]:
        """Yield every entry with the time of its last use."""
        folder = self.root / "steps"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            used = (path / _MANIFEST).stat().st_mtime if (path / _MANIFEST).exists() else 0.0
            raw: dict[str, Any] = {"files": {}, "facts": {}}
            with contextlib.suppress(OSError, ValueError):
                raw = json.loads((path / _MANIFEST).read_bytes())
            yield (
                Entry(key=path.name, path=path, files=raw["files"], facts=raw["facts"]),
                used,
            )

    def collect(
        self, *, keep_bytes: int | None = None, spare_seconds: float = _SPARE_SECONDS
    ) -> list[Entry]:
        """Drop what killed builds left and then the longest unused entries above `keep_bytes`.

        Args:
            keep_bytes: None means `limit()`.
            spare_seconds: what was used later than this is kept, for a build may be working on it.
        """
        keep_bytes = limit() if keep_bytes is None else keep_bytes
        now = time.time()
        for path in (self.root / "tmp").glob("*"):
            if now - path.stat().st_mtime > 6 * 3600:
                shutil.rmtree(path, ignore_errors=True)
        dropped = []
        total = 0
        for entry, used in sorted(self.entries(), key=lambda pair: -pair[1]):
            total += entry.size
            if total > keep_bytes and now - used >= spare_seconds:
                self.drop(entry.key)
                dropped.append(entry)
        return dropped

    def _temporary(self) -> Path:
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        # mmdebstrap's mapped users write into it
        made.chmod(0o755)
        return made

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / key).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lacks_space(cause: OSError | errors.BuildFailed) -> bool:
    if isinstance(cause, errors.BuildFailed):
        return os.strerror(errno.ENOSPC) in cause.tail
    return cause.errno in {errno.ENOSPC, errno.EDQUOT}


def limit() -> int:
    """Return the bytes that results may take, from `KVEDGE_IMAGE_CACHE_GIB`, else 8 GiB.

    Raises:
        SpecError: that is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gib = float(text) if text else _LIMIT_GIB
        if not 0 <= gib < 1 << 20:
            raise ValueError(text)  # noqa: TRY301
    except ValueError as cause:
        problem = errors.Problem(path=LIMIT_VARIABLE, message=f"{text!r} is not a number of GiB")
        raise errors.SpecError("environment", [problem]) from cause
    return int(gib * 2**30)


def default_store() -> Store:
    """Return the user's store."""
    return Store(tools.cache_dir() / "images")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
