"""Desired properties of `$edgeAgent`."""

from __future__ import annotations

import json

import pytest

from kvedge.edgesim import manifest


def desired(**changes):
    """Return good desired properties, changed at the top."""
    return {
        "$version": 3,
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}},
            "edgeHub": {"type": "docker", "settings": {"image": "hub:1"}},
        },
        "modules": {},
        **changes,
    }


def test_modules_come_in_startup_order_then_by_name():
    """The agent starts modules one after the other in this order."""
    modules = {
        "b": {"settings": {"image": "i"}, "startupOrder": 2},
        "c": {"settings": {"image": "i"}, "startupOrder": 1},
        "a": {"settings": {"image": "i"}, "startupOrder": 2},
        "gone": None,
    }
    parsed = manifest.parse_deployment(desired(modules=modules))
    assert [module.name for module in parsed.modules] == ["c", "a", "b"]
    assert parsed.version == 3


def test_defaults_are_the_real_agents():
    """A module that says only its image is wanted running with the agent's defaults."""
    (module,) = manifest.parse_deployment(
        desired(modules={"m": {"settings": {"image": "i"}}})
    ).modules
    assert (module.status, module.restart_policy, module.pull_policy) == (
        "running",
        "on-unhealthy",
        "on-create",
    )


def test_create_options_chunks_are_joined():
    """Long options arrive in pieces of 512 characters."""
    text = json.dumps({"Cmd": ["x" * 1500]})
    pieces = [text[at : at + 512] for at in range(0, len(text), 512)]
    settings = {"image": "i"} | {
        f"createOptions{number:02}" if number else "createOptions": piece
        for number, piece in enumerate(pieces)
    }
    (module,) = manifest.parse_deployment(desired(modules={"m": {"settings": settings}})).modules
    assert module.create == {"Cmd": ["x" * 1500]}


def test_gap_in_create_options_is_refused():
    """A missing piece would give other options than were meant."""
    settings = {"image": "i", "createOptions": "{", "createOptions02": "}"}
    with pytest.raises(manifest.DeploymentError) as caught:
        manifest.parse_deployment(desired(modules={"m": {"settings": settings}}))
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"schemaVersion": "2.0"}, 412),
        ({"schemaVersion": "1.2"}, 412),
        ({"schemaVersion": ""}, 400),
        ({"systemModules": {}}, 400),
        ({"modules": {"m": {"settings": {}}}}, 400),
        ({"modules": {"m": {"settings": {"image": "i", "createOptions": "{"}}}}, 400),
        ({"modules": {"m": {"settings": {"image": "i"}, "restartPolicy": "maybe"}}}, 400),
        ({"modules": {"m": {"settings": {"image": "i"}, "type": "process"}}}, 400),
    ],
)
def test_bad_properties_give_the_real_codes(changed, code):
    """The code is what the agent reports as lastDesiredStatus."""
    with pytest.raises(manifest.DeploymentError) as caught:
        manifest.parse_deployment(desired(**changed))
    assert caught.value.code == code


def test_empty_properties_are_417():
    """A device that no deployment targets has only the version."""
    with pytest.raises(manifest.DeploymentError) as caught:
        manifest.parse_deployment({"$version": 1})
    assert caught.value.code == 417


def test_environment_values_become_text():
    """The twin holds strings, numbers and booleans."""
    env = {"A": {"value": "x"}, "B": {"value": 5}, "C": {"value": True}}
    (module,) = manifest.parse_deployment(
        desired(modules={"m": {"settings": {"image": "i"}, "env": env}})
    ).modules
    assert module.env == {"A": "x", "B": "5", "C": "true"}
