"""Bringing the cloud side up and down, and handing what it made to the environment.

The stack is kept beside the environment's, in the same backend, under a project of its own; its
checkpoints are never skipped, because Azure adopts nothing. What it made becomes
`.kvedge/<environment>/env`, which every command reads.
"""

from __future__ import annotations

import copy
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra import engine
from infra.cloud import resources
from kvedge import errors, settings
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infra.engine import Event
    from kvedge import spec

__all__ = ["CloudEngine", "bring_up", "recall", "take_down"]

_PROJECT = "kvedge-azure"
_PLUGIN = f"resource-azure-native-v{resources.PROVIDER_VERSION}"
_SECTIONS = ("azure", "cluster")
_BY_VARIABLE = "azure.arc.flux.token"


class CloudEngine(engine.Engine):
    """The cloud side's stack of an environment."""

    def __init__(self, stack: str, *, progress: Progress = silent) -> None:
        """Keep project and stack file in the environment's state folder."""
        folder = _state(stack) / "azure"
        project = engine.make_project(
            folder, stacks=folder, name=_PROJECT, program="infra.cloud.program"
        )
        super().__init__(stack, project=project, progress=progress)
        self._token = ""

    @property
    def file(self) -> Path:
        """The stack file, which nobody edits."""
        return self.source

    def has_seed(self) -> bool:
        """Tell that no key seed is to be made: nothing here derives keys."""
        return True

    def write(self, raw: Mapping[str, Any]) -> None:
        """Write the sections that the program reads, and what the engine needs beside them.

        A token goes by the environment: a stack's plain settings are kept in its state.
        """
        old = yaml.safe_load(self.file.read_text("utf-8")) if self.file.exists() else {}
        sections = copy.deepcopy({key: raw[key] for key in _SECTIONS if key in raw})
        flux = ((sections.get("azure") or {}).get("arc") or {}).get("flux") or {}
        self._token = flux.pop("token", "") or os.environ.get(
            settings.ENVIRONMENT[_BY_VARIABLE], ""
        )
        config = {f"{settings.NAMESPACE}:{key}": value for key, value in sections.items()}
        engine.write_private(self.file, yaml.safe_dump({**(old or {}), "config": config}))

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "PULUMI_SKIP_CHECKPOINTS": "false",
            "PULUMI_OPTION_CONFIG_FILE": str(self.file),
            settings.ENVIRONMENT[_BY_VARIABLE]: self._token,
        }


def bring_up(
    environment: spec.Environment, raw: Mapping[str, Any], *,
    on_event: Callable[[Event], None], progress: Progress = silent,
) -> dict[str, int]:  # fmt: skip
    """Make what the section says, and set the variables by which the environment finds it.

    Args:
        raw: the environment's settings as they are written.

    Raises:
        SpecError: the environment has a local site.
        ToolMissing: the provider's plugin is not installed.
        KvedgeError: the engine or Azure refused.
    """
    _check_place(environment.name)
    _check_plugin()
    driver = CloudEngine(environment.name, progress=progress)
    driver.write(raw)
    driver.prepare()
    changes = driver.up(on_event=on_event)
    _hand_on(environment, driver.outputs())
    return changes


def recall(
    environment: spec.Environment, raw: Mapping[str, Any], *, progress: Progress = silent
) -> bool:
    """Set the variables anew from the stack's outputs; False if nothing usable was made yet."""
    driver = CloudEngine(environment.name, progress=progress)
    driver.write(raw)
    made = driver.outputs() if driver.exists() else {}
    if "hubConnectionString" not in made:
        return False
    _hand_on(environment, made)
    return True


def take_down(
    environment: spec.Environment, *, on_event: Callable[[Event], None],
    progress: Progress = silent,
) -> dict[str, int]:  # fmt: skip
    """Take away what was made in Azure; errors as `bring_up`."""
    driver = CloudEngine(environment.name, progress=progress)
    if not driver.exists():
        return {}
    _check_plugin()
    changes = driver.destroy(on_event=on_event)
    driver.forget()
    driver.source.unlink(missing_ok=True)
    file = _state(environment.name) / "env"
    if file.exists():
        for variable in settings.read_variables(file):
            os.environ.pop(variable, None)
    for one in (file, file.with_name("kubeconfig")):
        one.unlink(missing_ok=True)
    return changes


def _hand_on(environment: spec.Environment, made: Mapping[str, Any]) -> None:
    """Write the environment's env file and set its variables; a kubeconfig becomes a file."""
    found = {
        "KVEDGE_HUB_CONNECTION_STRING": made["hubConnectionString"],
        "KVEDGE_HUB_DEVICE_HOST": made["deviceHost"],
    }
    if environment.platform:
        found["KVEDGE_CONNECTOR_CONNECTION_STRING"] = made["connectorConnectionString"]
    if "dpsIdScope" in made:
        found["KVEDGE_DPS_ID_SCOPE"] = made["dpsIdScope"]
        found["KVEDGE_DPS_GROUP_KEY"] = made["dpsGroupKey"]
    if "kubeconfig" in made:
        file = _state(environment.name) / "kubeconfig"
        engine.write_private(file, made["kubeconfig"])
        found["KVEDGE_KUBECONFIG"] = str(file)
        found["KVEDGE_CLUSTER_ID"] = made["clusterId"]
    lines = [f"# What kvedge made in Azure for environment {environment.name!r}."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in found.items()]
    engine.write_private(_state(environment.name) / "env", "\n".join(lines) + "\n")
    os.environ.update(found)


def _check_place(name: str) -> None:
    """Refuse an environment that has a local site, whose env file is not to be overwritten."""
    if (_state(name) / "site.json").exists():
        problem = errors.Problem(
            path="azure", message=f"environment {name!r} has a local site in {_state(name)}",
            hint=f"take the section out, or: kvedge site down {name} --purge",
        )  # fmt: skip
        raise errors.SpecError(f"settings of environment {name!r}", [problem])


def _check_plugin() -> None:
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    if not (home / "plugins" / _PLUGIN).is_dir():
        name = "pulumi-resource-azure-native"
        raise errors.ToolMissing(
            name, f"plugin {name!r} {resources.PROVIDER_VERSION} is not in {str(home)!r}",
            hint=f"pulumi plugin install resource azure-native {resources.PROVIDER_VERSION}",
        )  # fmt: skip


def _state(name: str) -> Path:
    return Path(".kvedge").absolute() / name
