"""Which VMs are restarted, how many at once, and what stops it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import fleet, rollout
from kvedge import errors, spec


class World:
    """A cluster and a hub: a restart takes two looks until its VM is healthy.

    Limits: knows only the requests that a roll-out makes; a VM in `broken` never boots.
    """

    def __init__(self, *names: str) -> None:
        self.members = [
            fleet.Member(name=name, namespace="edge", device_id=f"plant-{name}") for name in names
        ]
        self.secrets: dict[str, dict[str, str]] = {name: {"config.toml": "1"} for name in names}
        self.written = "2026-01-01T00:00:00Z"
        """When the Secrets were written last; guests start ten seconds after this."""
        self.templates: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.annotations: dict[str, dict[str, str]] = {name: {} for name in names}
        self.uid = dict.fromkeys(names, 1)
        self.looks = dict.fromkeys(names, 9)
        self.report = dict.fromkeys(names, 1)
        self.reported_code = dict.fromkeys(names, 200)
        self.broken: set[str] = set()
        self.stopped: set[str] = set()
        self.restarts: list[str] = []
        self.most_down = 0

    def healthy(self, name: str) -> bool:
        return self.looks[name] >= 2 and name not in self.broken

    async def get(self, path: str, **_: Any) -> Any:
        words = path.split("/")
        kind, name = (words[-2], words[-1]) if words[-2] != "edge" else (words[-1], "")
        if kind == "secrets":
            return {"items": [
                {
                    "metadata": {
                        "name": f"{vm}-edge", "creationTimestamp": "2026-01-01T00:00:00Z",
                        "managedFields": [{"time": self.written}],
                    },
                    "data": data,
                }
                for vm, data in self.secrets.items()
            ]}  # fmt: skip
        if name:
            return self._object(kind, name)
        found = []
        for member in self.members:
            if kind == "virtualmachineinstances":
                self.looks[member.name] += 1
            if kind != "datavolumes" and not (
                kind == "virtualmachineinstances" and member.name in self.stopped
            ):
                found.append(self._object(kind, member.name))
        if kind == "virtualmachineinstances":
            down = sum(not self.healthy(member.name) for member in self.members)
            self.most_down = max(self.most_down, down)
        return {"items": found}

    def _object(self, kind: str, name: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "edge", "generation": 1}
        metadata["creationTimestamp"] = "2026-01-01T00:00:10Z"
        if kind == "virtualmachines":
            volumes = [{"name": "config", "secret": {"secretName": f"{name}-edge"}}]
            template = {"spec": {**self.templates[name], "volumes": volumes}}
            status = {"printableStatus": "Stopped" if name in self.stopped else "Running"}
            return {"metadata": metadata, "spec": {"template": template}, "status": status}
        if name in self.stopped:
            raise errors.NotFound("get", status=404)
        metadata |= {"uid": str(self.uid[name]), "annotations": dict(self.annotations[name])}
        ready = "True" if self.healthy(name) else "False"
        conditions = [{"type": "Ready", "status": ready}]
        return {"metadata": metadata, "status": {"phase": "Running", "conditions": conditions}}

    async def request(self, method: str, path: str, _body: Any, **_: Any) -> Any:
        assert method == "PUT"
        assert path.endswith("/restart")
        name = path.split("/")[-2]
        self.restarts.append(name)
        self.uid[name] += 1
        self.looks[name] = 0
        self.annotations[name] = {}

    async def patch(self, path: str, body: Any, _kind: str) -> Any:
        self.annotations[path.rpartition("/")[2]].update(body["metadata"]["annotations"])

    async def query(self, text: str, **_: Any) -> list[dict[str, Any]]:
        found = []
        for member in self.members:
            if f"'{member.device_id}'" not in text:
                continue
            if self.healthy(member.name) and self.looks[member.name] == 2:
                self.report[member.name] += 1
            reported = {
                "$version": self.report[member.name], "lastDesiredVersion": 4,
                "lastDesiredStatus": {"code": self.reported_code[member.name]},
                "systemModules": {"edgeHub": {"runtimeStatus": "running"}},
            }  # fmt: skip
            desired = {"$version": 4, "systemModules": {"edgeHub": {}}}
            found.append({
                "deviceId": member.device_id, "connectionState": "Connected",
                "properties": {"desired": desired, "reported": reported},
            })  # fmt: skip
        return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.0)


async def roll_out(world: World, at_once: str = "1", seconds: int = 600) -> list[str]:
    """Roll out over the world."""
    plan = spec.Rollout(max_unavailable=at_once, ready_seconds=seconds)
    return await rollout.roll_out(world, world, world.members, plan)  # type: ignore[arg-type]


async def test_only_a_change_restarts() -> None:
    """First start, same again, changed Secret, changed template."""
    world = World("p1")
    assert await roll_out(world) == []
    assert await roll_out(world) == []
    world.secrets["p1"]["config.toml"] = "2"
    assert await roll_out(world) == ["p1"]
    assert await roll_out(world) == []
    world.templates["p1"]["domain"] = {"memory": {"guest": "2Gi"}}
    assert await roll_out(world) == ["p1"]


async def test_user_keys_restart_nothing() -> None:
    """They reach a running guest through its agent."""
    world = World("p1")
    await roll_out(world)
    world.secrets["p1"]["authorized_keys"] = "another"
    assert await roll_out(world) == []


@pytest.mark.parametrize("noted", [True, False])
async def test_what_a_vm_was_started_with_is_noted_before_a_change(noted: bool) -> None:
    """A VM that somebody else started: afterwards a change of keys looks like any other."""
    world = World("p1")
    if noted:
        await rollout.note(world, world.members)  # type: ignore[arg-type]
    world.secrets["p1"]["authorized_keys"] = "another"
    world.written = "2026-01-01T00:01:00Z"
    assert await roll_out(world) == ([] if noted else ["p1"])
    await rollout.note(world, world.members)  # type: ignore[arg-type]
    world.secrets["p1"]["config.toml"] = "2"
    assert await roll_out(world) == ["p1"]


@pytest.mark.parametrize(("at_once", "most"), [("1", 1), ("2", 2), ("50%", 2), ("100%", 5)])
async def test_no_more_than_wanted_are_down_at_once(at_once: str, most: int) -> None:
    """All are restarted, each one step after those before are healthy."""
    world = World("p1", "p2", "p3", "p4", "p5")
    await roll_out(world)
    for name in world.secrets:
        world.secrets[name] = {"config.toml": "2"}
    assert await roll_out(world, at_once) == ["p1", "p2", "p3", "p4", "p5"]
    assert world.most_down == most


async def test_a_vm_that_fails_stops_it_and_the_old_settings_bring_it_back() -> None:
    """The first is broken by the change; nobody else is touched, and going back mends it."""
    world = World("p1", "p2", "p3")
    await roll_out(world)
    before = copy.deepcopy(world.secrets)
    for name in world.secrets:
        world.secrets[name] = {"config.toml": "broken"}
    world.broken = {"p1"}
    for _ in range(2):
        with pytest.raises(errors.KvedgeError, match=r"stopped: VM 'p1': booting .*: p2, p3"):
            await roll_out(world, seconds=0)
    assert world.restarts == ["p1"]
    world.secrets, world.broken = before, set()
    assert await roll_out(world) == ["p1"]


@pytest.mark.looptime
async def test_a_deployment_that_is_not_good_holds_the_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connected is not enough: the agent must run what the hub wants of it."""
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 1.0)
    world = World("p1", "p2")
    await roll_out(world)
    for name in world.secrets:
        world.secrets[name] = {"config.toml": "2"}
    world.reported_code["p1"] = 406
    with pytest.raises(errors.KvedgeError, match="applying its deployment after 30 s"):
        await roll_out(world, seconds=30)
    assert "p2" not in world.restarts


async def test_a_stopped_vm_is_left_alone() -> None:
    """The next start takes what is new."""
    world = World("p1", "p2")
    world.stopped = {"p1"}
    await roll_out(world)
    for name in world.secrets:
        world.secrets[name] = {"config.toml": "2"}
    assert await roll_out(world) == ["p2"]


@given(
    count=st.integers(1, 7), changed=st.sets(st.integers(0, 6)), down=st.sets(st.integers(0, 6)),
    step=st.integers(1, 3),
)  # fmt: skip
async def test_each_changed_vm_is_restarted_once_and_the_down_ones_first(
    count: int, changed: set[int], down: set[int], step: int
) -> None:
    """Whatever is down and changed: never more than the step is taken down from health."""
    rollout._POLL_SECONDS = 0.0
    world = World(*[f"p{number}" for number in range(count)])
    await roll_out(world)
    for number in changed & set(range(count)):
        world.secrets[f"p{number}"] = {"config.toml": "2"}
        if number in down:
            world.looks[f"p{number}"] = -10_000
    sick = [f"p{number}" for number in sorted(changed & down & set(range(count)))]
    done = await roll_out(world, str(step))
    assert sorted(done) == [f"p{number}" for number in sorted(changed & set(range(count)))]
    assert done[: len(sick)] == sick
    assert world.most_down <= step + len(sick)
