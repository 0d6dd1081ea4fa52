"""What `--hub` leaves out of the contract tests, and that it says so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kvedge import processes

_ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(180)
def test_a_real_hub_gets_all_tests_but_the_emulators_own():
    """Tests of knobs and of Azure's management are deselected with a reason, no other one is."""
    done = processes.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         "tests/contract/hub", "--hub", "HostName=h;SharedAccessKeyName=n;SharedAccessKey=a2V5"],
        what="collect", cwd=_ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    text = done.stdout.decode() if isinstance(done.stdout, bytes) else done.stdout
    kept, _, left_out = text.partition("not run on the real hub")
    files = set(re.findall(r"tests/contract/hub/(test_\w+)\.py::", kept))
    assert files >= {"test_devices", "test_deployments", "test_identities", "test_jobs",
                     "test_twins", "test_device_configurations", "test_certificates"}  # fmt: skip
    reasons = re.findall(r"(test_\w+)\.py::\S+: (.+)", left_out)
    assert {file for file, _ in reasons} == {
        "test_knobs", "test_provisioning", "test_certificates", "test_jobs",
    }  # fmt: skip
    assert {reason for file, reason in reasons if file == "test_knobs"} == {
        "a real hub has no knobs"
    }
    assert "test_knobs" not in files
