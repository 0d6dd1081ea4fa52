"""The Ubuntu recipes for real, wherever their archives answer: `make test-ubuntu`.

Nothing is skipped: where an archive does not answer, the test fails with apt's words.
"""

import dataclasses
import json

import pytest

from images import booting, building, cache, recipe, scanning, trees

pytestmark = [pytest.mark.ubuntu, pytest.mark.timeout(3600)]
RECIPES = ("ubuntu-24.04-edge", "ubuntu-22.04-edge")
DEADLINE = 900


def _built(wanted, store):
    """Make a recipe's image as `images.build` does."""
    plan = building.plan_of(wanted)
    for step in building.missing(plan, store):
        building.make_step(plan, step, store)
    return plan, {step.kind: store.find(step.key) for step in plan.steps}


def _with_stand_in(wanted):
    """The recipe with the archive's own docker, and the stand-in in place of the runtime."""
    base = wanted.layers[0]
    engine = recipe.Layer(name="engine", packages=("docker.io",))
    edge = recipe.Layer(name="edge", local_packages=("edgesim",))
    return dataclasses.replace(wanted, layers=(base, engine, edge), sources=())


@pytest.mark.parametrize("name", RECIPES)
def test_boots_with_the_stand_in(name, tmp_path):
    """Ubuntu's packages make a disk that boots through, with docker and keys as on Debian."""
    _, made = _built(_with_stand_in(recipe.load(name)), cache.default_store())
    with booting.boot(made["disk"].path / "disk.qcow2", tmp_path) as guest:
        client = guest.login(deadline=DEADLINE)

        def run(command):
            return guest.run(client, command, timeout=DEADLINE)

        code, text = run("cloud-init status --wait >/dev/null; systemctl is-system-running --wait")
        assert (code, text.strip()) == (0, "running"), run("systemctl --failed; cloud-init status")
        assert run("systemctl is-active docker")[1] == "active\n"
        assert json.loads(run("cat /run/kvedge/apply.json")[1])["ok"]
        assert f'VERSION_ID="{name.split("-")[1]}"' in run("cat /etc/os-release")[1]
        client.close()


@pytest.mark.parametrize("name", RECIPES)
def test_builds_with_the_vendors_packages(name):
    """The recipe as it is, with Microsoft's source: the pinned pair and Moby are in it."""
    plan, _ = _built(recipe.load(name), cache.default_store())
    tree = cache.default_store().find(plan.steps[-2].below).path / "root.tar"
    with tree.open("rb") as stream:
        found = {one.name: one.version for one in scanning.packages(trees.TarTree(stream))}
    pinned = dict(word.split("=") for word in plan.recipe.layers[-1].packages)
    assert pinned.items() <= found.items()
    assert "moby-engine" in found
