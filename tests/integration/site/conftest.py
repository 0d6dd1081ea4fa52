"""Sites of this folder's own, for tests that break them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from kvedge import processes, tools
from kvedge.site import control, state
from kvedge.testing.sites import run_kvedge

NOBODY, NOGROUP = 65534, 65534


@pytest.fixture
def short_tmp():
    """A folder with a short path that any user may enter."""
    path = Path(tempfile.mkdtemp(prefix="kvedge-t-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def own_site():
    """A site that this module's tests may break and mend."""
    root = Path(tempfile.mkdtemp(prefix="kvedge-own-"))
    directory = root / "mine"
    try:
        run_kvedge("site", "up", "mine", "--dir", str(directory))
        yield state.load(directory)
    finally:
        control.down(directory, purge=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def as_nobody(short_tmp):
    """Return a function that runs kvedge as an unprivileged user with a home of its own."""
    if os.geteuid() != 0:
        # Everything in this session runs unprivileged then.
        return lambda *words: run_kvedge(*words, check=False)
    home = short_tmp / "home"
    cache = home / "cache"
    shutil.copytree(
        tools.cache_dir() / "tools",
        cache / "tools",
        copy_function=os.link,
        symlinks=True,
        ignore=shutil.ignore_patterns("*.lock", "versions.json"),
    )
    for folder in (home, cache, *(item for item in (cache).rglob("*") if item.is_dir())):
        os.chown(folder, NOBODY, NOGROUP)
    # setpriv itself still has root's capabilities when it starts its program, so that one is env.
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOGROUP}", "--clear-groups", "--", "env"]
    python = _python_for(become)
    root = Path(__file__).parents[3]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "HOME": str(home),
        "KVEDGE_CACHE": str(cache),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{root}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*words: str):
        return processes.run(
            [
                *(*become, "-i", *(f"{key}={value}" for key, value in env.items())),
                *(python, "-P", "-m", "kvedge", *words),
            ],
            what=f"kvedge {' '.join(words)} as nobody",
            cwd=home,
            check=False,
            timeout=240,
        )

    return run


def _python_for(become: list[str]) -> str:
    version = "{}.{}".format(*sys.version_info[:2])
    for candidate in (sys.executable, f"/usr/bin/python{version}"):
        done = processes.run(
            [*become, candidate, "-c", "import sys; print(sys.version_info[:2])"],
            what="find a python for nobody",
            check=False,
        )
        if done.stdout.strip() == str(tuple(sys.version_info[:2])):
            return candidate
    pytest.fail(f"no python {version} that an unprivileged user can run: install python{version}")
