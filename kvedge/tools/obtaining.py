"""Getting tools: what is on PATH, else what the cache holds, else a build."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvedge import errors
from kvedge.progress import silent
from kvedge.tools import debian, finding, golang, layout
from kvedge.tools.building import Builder
from kvedge.tools.catalogue import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvedge.progress import Progress
    from kvedge.tools.recipes import Family, Tool

__all__ = ["Row", "Toolbox", "link"]

_TWO_LANES_KIBIBYTES = 8 << 20

Source = Literal["path", "cache", "missing"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of one tool."""

    name: str
    family: str
    version: str
    """The version that a build gives."""
    source: Source
    path: Path | None
    """None: it is missing."""


class Toolbox:
    """All tools of one cache."""

    def __init__(
        self,
        *,
        cache: Path | None = None,
        sources: Path | None = None,
        families: tuple[Family, ...] = FAMILIES,
    ) -> None:
        """Use the given cache and sources, or those of this installation."""
        self._cache = cache or layout.cache_dir()
        self._sources = sources or layout.sources_dir()
        self._families = families
        self._folders: dict[str, Path] = {}
        self._versions = finding.Versions(self._cache / "tools" / "versions.json")

    def names(self) -> tuple[str, ...]:
        """Return the name of every tool that kvedge itself drives."""
        return tuple(
            tool.name for family in self._families if not family.extra for tool in family.tools
        )

    def status(self) -> list[Row]:
        """Tell of each tool where it is."""
        rows = []
        for family in self._families:
            for tool in family.tools:
                source, path = self._look(family, tool)
                row = Row(
                    name=tool.name,
                    family=family.name,
                    version=family.version,
                    source=source,
                    path=path,
                )
                rows.append(row)
        return rows

    def path(self, name: str) -> Path:
        """Return where a tool is.

        Raises:
            ToolMissing: it has to be built first, or nothing of that name is known.
        """
        family, tool = self._known(name)
        found = self._look(family, tool)[1]
        if found is None:
            raise errors.ToolMissing(
                name,
                f"{name!r} {family.version} is neither on PATH nor built",
                hint=f"kvedge tools build {name}",
            )
        return found

    def ensure(self, names: Iterable[str], *, progress: Progress = silent) -> dict[str, Path]:
        """Return where the named tools are, after building those that are missing.

        Raises:
            ToolMissing: a name is unknown, disk is short, or something to build with is missing.
            BuildFailed: a build failed.
        """
        wanted = dict.fromkeys(names)
        found: dict[str, Path] = {}
        missing: dict[str, list[Tool]] = {}
        for name in wanted:
            family, tool = self._known(name)
            path = self._look(family, tool)[1]
            if path is None:
                missing.setdefault(family.name, []).append(tool)
            else:
                found[name] = path
        if missing:
            families = [family for family in self._families if family.name in missing]
            self._build(families, missing, progress)
            found |= {
                tool.name: self.path(tool.name) for tools in missing.values() for tool in tools
            }
        return {name: found[name] for name in wanted}

    def _build(
        self, families: list[Family], missing: dict[str, list[Tool]], progress: Progress
    ) -> None:
        self._check_disk(families)
        # Told before the work begins, on terminals and in logs alike.
        task = f"obtain programs ({_price(families)})"
        progress(task, 0, len(families))
        ended = threading.Event()

        def hear(task: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
            if ended.is_set():
                raise _EndedError
            progress(task, done, total, note)

        with contextlib.ExitStack() as stack:
            go: golang.Go | None = None
            if any(family.debian is None for family in families):
                go = stack.enter_context(
                    golang.opened(
                        cache=self._cache,
                        sources=self._sources,
                        versions=self._versions,
                        progress=progress,
                    )
                )
            lanes = stack.enter_context(ThreadPoolExecutor(max_workers=_lanes()))
            # The longest first, so that none of them is alone at the end.
            jobs = [
                lanes.submit(self._build_family, family, missing[family.name], go, hear)
                for family in sorted(families, key=lambda family: -family.seconds)
            ]
            try:
                for count, job in enumerate(as_completed(jobs)):
                    job.result()
                    progress(task, count + 1, len(families))
            except BaseException:
                ended.set()
                lanes.shutdown(cancel_futures=True)
                raise

    def _build_family(
        self, family: Family, tools: list[Tool], go: golang.Go | None, progress: Progress
    ) -> None:
        folder = self._folder(family)
        with self._locked(family, progress):
            # Whoever held the lock before may have built them.
            todo = [tool for tool in tools if not (folder / tool.file).exists()]
            if not todo:
                return
            log = self._cache / "tools" / "logs" / f"{family.name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            if family.debian is not None:
                debian.unpack(family, folder, cache=self._cache, log=log, progress=progress)
            else:
                assert go is not None
                Builder(go, sources=self._sources, log=log, progress=progress).build(todo, folder)

    @contextlib.contextmanager
    def _locked(self, family: Family, progress: Progress) -> Iterator[None]:
        def busy() -> None:
            progress(f"build {family.name}", note="another build of it is at work")

        with layout.locked(self._cache / "tools" / f"{family.name}.lock", busy=busy):
            yield

    def _check_disk(self, families: list[Family]) -> None:
        keeps = golang.keeps_caches()
        need = sum(family.kept_mebibytes if keeps else family.mebibytes for family in families)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._cache).free >> 20
        except OSError as cause:
            raise errors.ToolMissing(
                families[0].tools[0].name,
                f"cannot use cache {str(self._cache)!r}: {cause.strerror}",
                hint="set KVEDGE_CACHE to a folder that you may write to",
            ) from cause
        if free < need:
            raise errors.ToolMissing(
                families[0].tools[0].name,
                f"building {', '.join(family.name for family in families)} needs {need} MiB below "
                f"{str(self._cache)!r}, {free} MiB are free",
                hint="free the disk, or set KVEDGE_CACHE to a folder on another one",
            )

    def _known(self, name: str) -> tuple[Family, Tool]:
        for family in self._families:
            for tool in family.tools:
                if tool.name == name:
                    return family, tool
        raise errors.ToolMissing(
            name, f"no tool {name!r} is known", hint=f"known are: {', '.join(self.names())}"
        )

    def _look(self, family: Family, tool: Tool) -> tuple[Source, Path | None]:
        found = finding.find(tool, family, self._versions, cache=self._cache)
        if found is not None:
            return "path", found
        cached = self._folder(family) / tool.file
        return ("cache", cached) if cached.exists() else ("missing", None)

    def _folder(self, family: Family) -> Path:
        if family.name not in self._folders:
            folder = layout.family_dir(family, cache=self._cache, sources=self._sources)
            self._folders[family.name] = folder
        return self._folders[family.name]


class _EndedError(Exception):
    """Another lane failed, or the user has enough."""


def _lanes() -> int:
    """Return how many families are built at once: linking one fits beside compiling another.

    A lane takes up to 4 GiB at the largest compilations.
    """
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 2 if int(memory["MemAvailable"].split()[0]) >= _TWO_LANES_KIBIBYTES else 1


def _price(families: list[Family]) -> str:
    """Say what a build from nothing takes."""
    minutes = sum(family.seconds for family in families) / 60
    gibibytes = sum(family.mebibytes for family in families) / 1024
    time = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    disk = f"{gibibytes:.0f} GiB" if gibibytes >= 1.5 else "1 GiB"
    return f"{time}, up to {disk} of disk meanwhile"


def link(paths: dict[str, Path], folder: Path) -> None:
    """Make `folder` a bin folder with one symbolic link a program, replacing what differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        target = folder / name
        # With this folder on PATH, a program may be found by the very link that is to be made.
        if path.parent.resolve() == folder.resolve():
            continue
        if target.is_symlink() and target.readlink() == path:
            continue
        partial = folder / f".{name}.{os.getpid()}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(path)
        partial.replace(target)
