"""Building a family's Go programs from the modules whose hashes the project carries."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes
from kvedge.tools.recipes import GoFile, GoFolder, GoMain, Manifests, Tool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvedge.progress import Progress
    from kvedge.tools.golang import Go

__all__ = ["Builder", "place"]


class Builder:
    """Builds tools one after the other, with one Go and one log."""

    def __init__(self, go: Go, *, sources: Path, log: Path, progress: Progress) -> None:
        """Build from the modules below `sources`; `log` gets what Go prints."""
        self._go = go
        self._sources = sources
        self._log = log
        self._progress = progress

    def build(self, tools: Iterable[Tool], folder: Path) -> None:
        """Put each tool into the family's folder as soon as it is ready.

        Raises:
            BuildFailed: Go or a program that prints objects failed; the log has it all.
        """
        for tool in tools:
            with tempfile.TemporaryDirectory(prefix="out-", dir=self._go.scratch) as out:
                made = Path(out) / "made"
                match tool.recipe:
                    case GoMain():
                        self._compile(tool.recipe, made, tool.name)
                    case GoFile():
                        shutil.copyfile(self._module_dir(tool.recipe) / tool.recipe.path, made)
                        made.chmod(0o755)
                    case GoFolder():
                        _copy_folder(self._module_dir(tool.recipe) / tool.recipe.path, made)
                    case Manifests():
                        self._print(tool.recipe, made, Path(out))
                    case _:
                        raise TypeError(tool.recipe)
                place(made, folder / tool.file)

    def _compile(self, main: GoMain, target: Path, name: str) -> None:
        """Compile and link one program; progress counts Go packages."""
        task = f"build {name}"
        self._progress(task, note="modules")

        def downloading(line: str) -> None:
            if line.startswith("go: downloading "):
                self._progress(task, note=line.split()[2])

        module = self._sources / main.module
        listed = self._run(
            ["list", "-deps", main.package], module, f"list the packages of {name!r}", downloading
        )
        packages = {line for line in listed.splitlines() if not line.startswith("go: ")}
        waiting = set(packages)

        def compiled(line: str) -> None:
            waiting.discard(line)
            done = len(packages) - len(waiting)
            self._progress(task, done, len(packages) + 1, "packages")

        flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-v"]
        stamps = [f"-X {stamp}" for stamp in main.stamps]
        # What the linker drops is not made at all: a tenth of the compilers' work.
        flags += ["-gcflags=all=-dwarf=false"]
        flags += ["-ldflags", " ".join(["-s -w", *stamps]), "-o", str(target)]
        self._run(["build", *flags, main.package], module, f"build {name!r}", compiled)
        self._progress(task, len(packages) + 1, len(packages) + 1)

    def _module_dir(self, part: GoFile | GoFolder) -> Path:
        module = self._sources / part.module
        argv = [self._go.program, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", part.inside]
        done = processes.run(
            argv, what=f"find Go module {part.inside!r}", env=self._go.env, cwd=module
        )
        return Path(done.stdout.strip())

    def _print(self, recipe: Manifests, target: Path, out: Path) -> None:
        import yaml

        self._compile(recipe.kubevirt, out / "kubevirt", "KubeVirt's manifests")
        self._compile(recipe.cdi, out / "cdi", "CDI's manifests")
        what = "print the objects of KubeVirt and CDI"
        printed = processes.run([out / "kubevirt", recipe.namespace, recipe.version], what=what)
        objects = json.loads(printed.stdout)
        definitions = json.loads(processes.run([out / "cdi"], what=what).stdout)
        objects["cdiCrds"] = [
            yaml.load(text, Loader=yaml.CSafeLoader) for _, text in sorted(definitions.items())
        ]
        target.write_text(json.dumps(objects, sort_keys=True), encoding="utf-8")

    def _run(self, argv: list[str], module: Path, what: str, on_line: object) -> str:
        done = processes.run(
            [self._go.program, *argv],
            what=what,
            env=self._go.env,
            cwd=module,
            log=self._log,
            on_line=on_line,  # type: ignore[arg-type]
        )
        return done.stdout


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that it can be moved and removed: Go keeps its modules read-only."""
    target.mkdir()
    for found in sorted(source.rglob("*")):
        copy = target / found.relative_to(source)
        if found.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(found, copy)


def place(made: Path, target: Path) -> None:
    """Move a finished file to where it is looked for, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.move(made, partial)
        partial.replace(target)
    except OSError as cause:
        partial.unlink(missing_ok=True)
        raise errors.ToolMissing(
            target.name,
            f"cannot put {target.name!r} into {str(target.parent)!r}: {cause.strerror}",
            hint="make room there, or set KVEDGE_CACHE to another folder",
        ) from cause
