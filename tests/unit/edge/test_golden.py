"""Pods and the deployments that they become, one pair of files a case.

`KVEDGE_GOLDEN=write pytest tests/unit/edge/test_golden.py` writes the expected files anew.
"""

from __future__ import annotations

import json
import os
import pathlib

import pytest
import yaml

from kvedge import edge, errors

FOLDER = pathlib.Path(__file__).parents[2] / "golden" / "pods"
CASES = sorted(path.name.removesuffix(".input.yaml") for path in FOLDER.glob("*.input.yaml"))


def translate(case: dict) -> dict:
    """Return what the hub would get, or the problems."""
    try:
        made = edge.revision_of(edge.Inputs(cluster="c0ffee00-1", node="iot-edge", **case))
    except errors.SpecError as error:
        return {"problems": [str(problem) for problem in error.problems]}
    return {
        "configuration": made.configuration(made.lowest_priority()),
        "modules": dict(made.modules),
    }


@pytest.mark.parametrize("name", CASES)
def test_golden_pod(name: str):
    """A pod becomes exactly the deployment of the expected file."""
    case = yaml.safe_load((FOLDER / f"{name}.input.yaml").read_text())
    found = json.dumps(translate(case), indent=2) + "\n"
    expected = FOLDER / f"{name}.expected.json"
    if os.environ.get("KVEDGE_GOLDEN") == "write":
        expected.write_text(found)
    assert json.loads(found) == json.loads(expected.read_text())
