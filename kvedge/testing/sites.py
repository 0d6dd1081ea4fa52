"""A running local site for tests: `site` is started once a session and taken down at its end.

To be included by `pytest_plugins = ["kvedge.testing.sites"]`. With KVEDGE_TEST_SITE=<folder> tests
use (and mend, and leave running) the site in that folder; a developer saves the start that way.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvedge import errors, processes, tools
from kvedge.site import control, namespace, state

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["inside", "kubectl", "pytest_collection_modifyitems", "run_kvedge", "site"]

_SITE_SECONDS = 300
_VM_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on a site the time that its start may take on a busy machine."""
    for item in items:
        if item.get_closest_marker("timeout") is not None:
            continue
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.timeout(_VM_SECONDS))
        elif item.get_closest_marker("site"):
            item.add_marker(pytest.mark.timeout(_SITE_SECONDS))


@pytest.fixture(scope="session")
def site() -> Iterator[state.Site]:
    """Yield a running site that all tests of the session share."""
    given = os.environ.get("KVEDGE_TEST_SITE")
    if given:
        yield control.up(Path(given), _name(Path(given)))
        return
    # Unix sockets and readers of failures like a short path.
    root = Path(tempfile.mkdtemp(prefix="kvedge-site-"))
    try:
        yield control.up(root / "test", "test")
    finally:
        control.down(root / "test", purge=True)
        shutil.rmtree(root, ignore_errors=True)


def _name(directory: Path) -> str:
    try:
        return state.load(directory).name
    except errors.SiteError:
        return "test"


def kubectl(
    site: state.Site, *words: str, check: bool = True, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run kubectl as the site's admin, from outside."""
    return processes.run(
        [tools.path("kubectl"), f"--kubeconfig={site.kubernetes.kubeconfig}", *words],
        what=f"kubectl {' '.join(words[:3])}",
        stdin=stdin.encode() if stdin is not None else None,
        check=check,
        timeout=60,
    )


def inside(site: state.Site, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in the site's namespaces."""
    found = namespace.find(site.folder)
    assert found is not None, "the site's namespaces are gone"
    return processes.run(
        [*found.enter(), *words], what=f"run {words[0]} inside", check=check, timeout=60
    )


def run_kvedge(
    *words: str, check: bool = True, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return processes.run(
        [sys.executable, "-m", "kvedge", *words],
        what=f"kvedge {' '.join(words)}",
        check=check,
        timeout=timeout,
    )
