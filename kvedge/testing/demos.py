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

from kvedge import processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["Demo", "demo"]

_UP_SECONDS = 1200
_KEPT = ("KVEDGE_CACHE", "KVEDGE_GO_CACHE")


class Demo:
    """A running demo in a folder of its own, driven as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / ".kvedge" / "dev"

    def kvedge(
        self, *words: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run the installed command line."""
        return self._run([str(Path(sys.executable).with_name("kvedge")), *words], check, timeout)

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

    def _run(
        self, argv: list[str], check: bool, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        ours = ("KVEDGE_", "PULUMI_", "KUBE")
        unset = [
            f"--unset={key}" for key in os.environ if key.startswith(ours) and key not in _KEPT
        ]
        done = processes.run(
            ["env", *unset, *argv],
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
    folder = Path(tempfile.mkdtemp(prefix="kvedge-e2e-"))
    running = Demo(folder)
    try:
        running.kvedge("site", "up", "dev")
        running.kvedge("up", "dev", timeout=_UP_SECONDS)
        yield running
    finally:
        running.kvedge("site", "down", "--purge", "dev", check=False)
        shutil.rmtree(folder, ignore_errors=True)
