"""The environments of a project: which stack files there are, what is in them, what is wrong.

Reads and writes files only; works without the engine, a cluster or a hub.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, names, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from infra.engine import Project
    from kvedge import spec

__all__ = ["Listed", "check", "create", "listed", "load", "variables"]

_EXAMPLE = "site-example"
_FILE = re.compile(r"Pulumi\.(.+)\.yaml")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One stack file and what it says."""

    name: str
    file: Path
    environment: spec.Environment | None
    """None if the settings are wrong."""
    problems: tuple[errors.Problem, ...] = ()


def _home(project: Project) -> Path:
    """Return where stack files are written: a checkout's folder, else the current one."""
    ours = project.stacks.is_relative_to(project.folder)
    return project.stacks if ours else Path.cwd()


def variables(name: str) -> dict[str, str]:
    """Return this process's variables and those of the environment's local site, if it has one.

    Variables that are set already win, and nothing is added when a site's file is sourced.
    """
    found = dict(os.environ)
    file = Path(".kvedge").absolute() / name / "env"
    if "KVEDGE_SITE" in found or not file.exists():
        return found
    return {**settings.read_variables(file), **found}


def listed(project: Project, wanted: Iterable[str] = ()) -> list[Listed]:
    """Return the project's environments, or those that are named, by name.

    Raises:
        SpecError: a named one has no stack file.
    """
    found = sorted(
        match[1]
        for file in _home(project).glob("Pulumi.*.yaml")
        if (match := _FILE.fullmatch(file.name)) and match[1] != _EXAMPLE
    )
    return [_listed(project, name) for name in (tuple(wanted) or found)]


def _listed(project: Project, name: str) -> Listed:
    file = _home(project) / f"Pulumi.{name}.yaml"
    stack = settings.read_stack(file)
    try:
        environment = settings.parse(name, stack, environ=variables(name))
    except errors.SpecError as wrong:
        return Listed(name=name, file=file, environment=None, problems=wrong.problems)
    return Listed(name=name, file=file, environment=environment)


def load(project: Project, name: str) -> spec.Environment:
    """Return one environment.

    Raises:
        SpecError: there is no such stack file, or its settings are wrong.
    """
    stack = settings.read_stack(project.stacks / f"Pulumi.{name}.yaml")
    return settings.parse(name, stack, environ=variables(name))


def check(project: Project, wanted: Iterable[str] = ()) -> list[Listed]:
    """Check environments, and that each hub's platform is carried by exactly one of the project's.

    Raises:
        SpecError: with every mistake of all of them, each below its environment's name.
    """
    asked = listed(project, wanted)
    problems = [
        errors.Problem(path=f"{one.name}: {p.path}", message=p.message, hint=p.hint)
        for one in asked
        for p in one.problems
    ]
    everyone = {one.name: one for one in [*listed(project), *asked]}
    problems += _platforms(everyone, {one.name for one in asked})
    if problems:
        raise errors.SpecError(f"settings in {_home(project)}", problems)
    return asked


def _platforms(everyone: Mapping[str, Listed], asked: set[str]) -> list[errors.Problem]:
    hubs: dict[str, list[spec.Environment]] = {}
    for one in everyone.values():
        if one.environment is not None:
            hubs.setdefault(one.environment.hub.device_host, []).append(one.environment)
    found: list[errors.Problem] = []
    for hub, sharing in hubs.items():
        carriers = [one.name for one in sharing if one.platform]
        if len(carriers) > 1:
            found += [
                errors.Problem(
                    path=f"{name}: platform",
                    message=f"hub {hub!r} has its platform in {', '.join(carriers)}",
                    hint="leave the section in one of them",
                )
                for name in carriers
                if name in asked
            ]
    return found


def create(project: Project, name: str, *, like: str = "") -> Path:
    """Write a stack file for a new environment, with every setting explained, and return it.

    Args:
        like: an environment whose settings to take instead; secrets of its own are left out.

    Raises:
        SpecError: the name is not usable, or there is such a file already.
    """
    file = _home(project) / f"Pulumi.{name}.yaml"
    source = _home(project) / f"Pulumi.{like or _EXAMPLE}.yaml"
    if not like and not source.exists():
        source = Path(__file__).parent / "stacks" / source.name
    problem = _unusable(file, name, source)
    if problem:
        raise errors.SpecError(f"cannot make environment {name!r}", [problem])
    text = source.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(  kvedge:site:).*$", rf"\1 {name}", text)
    text = re.sub(r"(?m)^encryptionsalt:.*\n|^  kvedge:keySeed:\n    secure:.*\n", "", text)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _unusable(file: Path, name: str, source: Path) -> errors.Problem | None:
    if not names.DNS_LABEL.fullmatch(name):
        return errors.Problem(
            path="name", message=f"{name!r} is not a DNS label (a-z, 0-9, '-')",
            hint="it becomes part of device ids and labels",
        )  # fmt: skip
    if file.exists():
        return errors.Problem(path=str(file), message="is there already", hint="edit it")
    if not source.exists():
        return errors.Problem(path=str(source), message="there is no such stack file")
    return None
