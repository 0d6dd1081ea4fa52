"""The whole demo, once a session: site and environment `dev`; then taken away again.

To be included by `pytest_plugins = ["kvedge.testing.demos"]`; it drives the installed command line
in a folder of its own, as a user does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import engine
from kvedge import processes, settings
from kvedge.site import state

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["Demo", "demo"]

_UP_SECONDS = 1200
_KEPT = ("KVEDGE_CACHE", "KVEDGE_GO_CACHE")


class Demo:
    """A site and an environment of one name in a folder of its own, driven as a user does."""

    def __init__(self, folder: Path, name: str = "dev") -> None:
        self.folder, self.name = folder, name
        self.site = folder / ".kvedge" / name
        self.variables: dict[str, str] = {}
        """Set for every command, such as those of the site's env file."""

    def begin(self, **more: str) -> state.Site:
        """Start the site alone, for an environment whose stack file is in this folder.

        Args:
            more: variables that win over those of the site's env file.
        """
        self.kvedge("site", "up", self.name)
        inside = settings.read_variables(self.site / "env")
        del inside["PATH"]
        self.variables = {**inside, **more}
        engine.make_project(self.folder, stacks=self.folder)
        return state.load(self.site)

    def write(self, **raw: Any) -> None:
        """Write the stack file."""
        file = self.folder / "infra" / "stacks" / f"Pulumi.{self.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        config = {f"kvedge:{key}": value for key, value in raw.items()}
        file.write_text(yaml.safe_dump({"config": config}))

    def end(self) -> None:
        """Take site and folder away."""
        self.kvedge("site", "down", "--purge", self.name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start the installed command line and let it run."""
        return processes.popen(
            [self._program(), *words], cwd=self.folder, env=self.variables, log=log
        )

    def kvedge(
        self, *words: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run the installed command line."""
        return self._run([self._program(), *words], check, timeout)

    def sourced(
        self, line: str, *, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line as someone who has sourced the site's env file."""
        return self._run(["bash", "-c", f". {self.site}/env && {line}"], check, timeout)

    def status(self) -> dict[str, Any]:
        """Return what `kvedge status -o json` says."""
        return json.loads(self.kvedge("status", "-o", "json").stdout)

    def ssh(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in edge1 through kvedge ssh."""
        return self.kvedge("ssh", "edge1", command, check=check, timeout=180)

    @staticmethod
    def _program() -> str:
        return str(Path(sys.executable).with_name("kvedge"))

    def _run(
        self, argv: list[str], check: bool, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        ours = ("KVEDGE_", "PULUMI_", "KUBE")
        unset = [
            f"--unset={key}" for key in os.environ if key.startswith(ours) and key not in _KEPT
        ]
        done = processes.run(
            ["env", *unset, *(f"{key}={value}" for key, value in self.variables.items()), *argv],
            what=" ".join(argv[:4]),
            cwd=self.folder,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{argv} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """Bring the demo up and take everything away at the end."""
    running = Demo(Path(tempfile.mkdtemp(prefix="kvedge-e2e-")))
    try:
        running.kvedge("site", "up", "dev")
        running.kvedge("up", "dev", timeout=_UP_SECONDS)
        yield running
    finally:
        running.end()
