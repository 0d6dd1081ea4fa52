"""Whatever a pod asks, it becomes a sound deployment or is refused by field."""

from __future__ import annotations

import copy
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from kvedge import edge, errors

NAME = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
TEXT = st.text(max_size=30)
CONTAINER = st.fixed_dictionaries(
    {"name": NAME, "image": st.sampled_from(["i:1", "reg.example/a/b@sha256:00"])},
    optional={
        "command": st.lists(TEXT, max_size=3),
        "args": st.lists(TEXT, max_size=3),
        "workingDir": TEXT,
        "tty": st.booleans(),
        "ports": st.lists(
            st.fixed_dictionaries(
                {"containerPort": st.integers(1, 65535)},
                optional={"hostPort": st.integers(1, 65535), "protocol": st.just("UDP")},
            ),
            max_size=3,
        ),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "limits": st.dictionaries(
                    st.sampled_from(["cpu", "memory", "x/y"]),
                    st.sampled_from(["1", "250m", "64Mi", "1e3", "nonsense"]),
                )
            },
        ),
        "livenessProbe": st.just({"exec": {"command": ["x"]}}),
        "someNewField": st.just(1),
    },
)
POD = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {
                "name": NAME,
                "namespace": NAME,
                "annotations": st.just({"kvedge.io/target-condition": "*"}),
            }
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(CONTAINER, min_size=1, max_size=3)},
            optional={"hostNetwork": st.booleans(), "activeDeadlineSeconds": st.integers(1, 9)},
        ),
    }
)


def translated(pod):
    """Return the deployment or the problems of a pod."""
    env = {c["name"]: {"A": "ü" * 5} for c in pod["spec"]["containers"]}
    try:
        return edge.revision_of(edge.Inputs(pod=pod, env=env, cluster="C-1.x", node="n"))
    except errors.SpecError as error:
        return [str(problem) for problem in error.problems]


@given(POD)
def test_no_container_is_lost(pod):
    """Each container is a module, or the pod is refused and says where."""
    found = translated(pod)
    names = [container["name"] for container in pod["spec"]["containers"]]
    if isinstance(found, list):
        assert found
        assert all(re.match(r"(spec|metadata|content)\b", problem) for problem in found)
        return
    assert list(found.modules) == names
    agent = found.content["$edgeAgent"]
    assert len(agent) == len(names)
    for container in pod["spec"]["containers"]:
        entry = agent[f"properties.desired.modules.{found.modules[container['name']]}"]
        assert entry["settings"]["image"] == container["image"]
        chunks = [v for k, v in sorted(entry["settings"].items()) if k.startswith("createOptions")]
        assert all(len(chunk) <= 512 for chunk in chunks)
        assert isinstance(json.loads("".join(chunks)), dict)


@given(POD)
def test_translation_is_repeatable(pod):
    """Equal pods become equal deployments, and the pod is left as it was."""
    before = copy.deepcopy(pod)
    assert translated(pod) == translated(copy.deepcopy(pod))
    assert pod == before


@given(POD)
def test_ids_are_what_the_hub_takes(pod):
    """Deployment ids are lower case, at most 128 characters, and change with the content."""
    found = translated(pod)
    if isinstance(found, list):
        return
    assert re.fullmatch(r"[a-z0-9\-+%_*!']{1,128}", found.id)
    other = copy.deepcopy(pod)
    other["spec"]["containers"][0]["image"] += "-changed"
    assert translated(other).id != found.id
