"""What every test may rely on: options for real services, hypothesis profiles, time limits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["kvedge.testing.sites", "kvedge.testing.demos"]

_UNIT_SECONDS = 20
_ROOT = Path(__file__).parent
_FIRST = ["e2e", *(f"integration/{room}" for room in ("infra", "images", "site", "node"))]

# Shared machines stall now and then, so an example has no deadline; the test as a whole has one.
hypothesis.settings.register_profile("quick", max_examples=50, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# A shell without job control starts what it puts in the background deaf to Ctrl-C, and the programs
# that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let contract tests run against the real things as well as against our stand-ins."""
    group = parser.getgroup("kvedge")
    group.addoption("--hub", metavar="CONNECTION_STRING", help="a real IoT Hub (service policy)")
    group.addoption("--cluster", metavar="KUBECONFIG", help="a real cluster with KubeVirt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give unit tests a short time limit, and let what takes longest begin first."""
    items.sort(key=_place)
    for item in items:
        folder = item.path.relative_to(_ROOT).parts[0]
        if folder == "unit" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_UNIT_SECONDS))


def _place(item: pytest.Item) -> int:
    """Return the turn of a test: with two workers, a long file at the end would run alone."""
    folder = "/".join(item.path.relative_to(_ROOT).parts[:-1])
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)


@pytest.fixture(scope="session")
def real_hub(request: pytest.FixtureRequest) -> str | None:
    """Connection string of the hub given by --hub."""
    return request.config.getoption("--hub")


@pytest.fixture(scope="session")
def real_cluster(request: pytest.FixtureRequest) -> Path | None:
    """Kubeconfig of the cluster given by --cluster."""
    given = request.config.getoption("--cluster")
    return Path(given) if given else None
