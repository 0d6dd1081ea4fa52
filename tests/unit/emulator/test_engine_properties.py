"""The deployment engine over any history, against a model that knows no incremental evaluation."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import (
    configurations,
    deploying,
    patching,
    presence,
    querying,
    registry,
    store,
    twins,
)

DEVICES = ("d0", "d1", "d2")
TARGETS = {
    "*": lambda _tag: True,
    "tags.s = 'a'": lambda tag: tag == "a",
    "tags.s != 'a'": lambda tag: tag not in (None, "a"),
    "NOT IS_DEFINED(tags.s)": lambda tag: tag is None,
}

names = st.sampled_from(DEVICES)
contents = st.fixed_dictionaries(
    {
        "target": st.sampled_from([*TARGETS]),
        "priority": st.integers(0, 3),
        "full": st.booleans(),
        "modules": st.dictionaries(st.sampled_from(["m", "n"]), st.integers(0, 2), max_size=2),
    }
)
actions = st.lists(
    st.tuples(st.just("add"), contents)
    | st.tuples(st.just("remove"), st.integers(0, 9))
    | st.tuples(st.just("rank"), st.integers(0, 9), st.integers(0, 3))
    | st.tuples(st.just("tag"), names, st.sampled_from([None, "a", "b"]))
    | st.tuples(st.just("edit"), names)
    | st.tuples(st.just("report"), names),
    max_size=12,
)


def content_of(given):
    modules = {name: {"v": value} for name, value in given["modules"].items()}
    if given["full"]:
        return {"$edgeAgent": {"properties.desired": {"modules": modules}}}
    return {
        "$edgeAgent": {
            f"properties.desired.modules.{name}": value for name, value in modules.items()
        }
    }


class Fleet:
    """A registry with an engine, and the model beside it."""

    def __init__(self):
        self.store = store.Store(None)
        here = presence.Presence(lambda name: self.engine.device_changed(name))
        self.twins = twins.Twins(self.store, here)
        queries = querying.Queries(self.store, here, lambda: 0.0)
        self.engine = deploying.Engine(self.store, here, self.twins, queries, seconds=0)
        self.configurations = configurations.Configurations(
            self.store, self.engine.configurations_changed
        )
        identities = registry.Registry(self.store, here)
        for name in DEVICES:
            identities.put(name, "", {"capabilities": {"iotEdge": True}}, None)
        self.made = {}
        self.tags = dict.fromkeys(DEVICES)
        self.reported = set()
        self.modules = {name: {} for name in DEVICES}

    def agent(self, name):
        return self.twins.find(name, "$edgeAgent")

    def put(self, name, given, if_match=None):
        body = {
            "content": {"modulesContent": content_of(given)},
            "targetCondition": given["target"],
            "priority": given["priority"],
        }
        self.configurations.put(name, body, if_match)

    def act(self, kind, *given):
        match kind:
            case "add":
                name = f"c{len(self.made)}"
                self.made[name] = dict(given[0])
                self.put(name, given[0])
            case "remove" | "rank":
                here = [name for name, item in self.made.items() if item]
                if not here:
                    return
                name = here[given[0] % len(here)]
                if kind == "remove":
                    self.made[name] = None
                    self.configurations.delete(name, None)
                else:
                    self.made[name]["priority"] = given[1]
                    self.put(name, self.made[name], "*")
            case "tag":
                self.tags[given[0]] = given[1]
                twin = self.twins.find(given[0])
                self.twins.write(twin, {"tags": {"s": given[1]}}, None, replace=False)
            case "edit":
                self.twins.write(
                    self.agent(given[0]),
                    {"properties": {"desired": {"modules": {"by-hand": {"v": 1}}}}},
                    None,
                    replace=False,
                )
                self.modules[given[0]] = {**self.modules[given[0]], "by-hand": {"v": 1}}
            case _:
                agent = self.agent(given[0])
                said = {
                    "lastDesiredVersion": agent.desired["$version"],
                    "lastDesiredStatus": {"code": 200},
                }
                self.twins.report(agent.key, said)
                self.reported.add(given[0])

    def hits(self, name):
        """Return base and layers of a device by the rules' words, and all that match."""
        order = [*self.made]
        matching = sorted(
            (key for key, item in self.made.items()
             if item and TARGETS[item["target"]](self.tags[name])),
            key=lambda key: (self.made[key]["priority"], order.index(key)),
        )  # fmt: skip
        full = [key for key in matching if self.made[key]["full"]]
        base = full[-1] if full else None
        layers = [
            key
            for key in matching
            if base
            and not self.made[key]["full"]
            and self.made[key]["priority"] > self.made[base]["priority"]
        ]
        return base, layers, matching

    def check(self):
        counts = {name: [0, 0, 0] for name, item in self.made.items() if item}
        for name in DEVICES:
            base, layers, matching = self.hits(name)
            if base:
                modules = {m: {"v": v} for m, v in self.made[base]["modules"].items()}
                for layer in layers:
                    for module, value in self.made[layer]["modules"].items():
                        modules[module] = {"v": value, "configuration": {"id": layer}}
                self.modules[name] = modules
            agent = self.agent(name)
            assert agent.desired.get("modules", {}) == self.modules[name]
            values = patching.values(agent.desired)
            assert agent.desired["$metadata"].keys() - {"$lastUpdated"} >= values.keys()
            applied = {
                key
                for key in ([base, *layers] if base else [])
                if self.made[key]["full"] or self.made[key]["modules"]
            }
            statuses = {
                key: {"status": "Applied" if key in applied else "Targeted"} for key in matching
            }
            assert agent.configurations == statuses
            current = agent.reported.get("lastDesiredVersion") == agent.desired["$version"]
            for key in matching:
                counts[key][0] += 1
                counts[key][1] += key in applied
                counts[key][2] += key in applied and current
        for key, (targeted, known, succeeded) in counts.items():
            assert self.store.configurations[key].system_results == {
                "targetedCount": targeted,
                "appliedCount": known,
                "reportedSuccessfulCount": succeeded,
                "reportedFailedCount": 0,
            }


@given(actions)
def test_any_history_ends_as_the_model_says(history):
    """After each change one evaluation brings manifests, statuses and counts to the rules."""

    async def live():
        fleet = Fleet()
        await fleet.engine.evaluate()
        for action in history:
            before = {name: fleet.agent(name) for name in DEVICES}
            fleet.act(*action)
            await fleet.engine.evaluate()
            fleet.check()
            if action[0] != "edit":
                for name, old in before.items():
                    same = old.desired.get("modules") == fleet.agent(name).desired.get("modules")
                    moved = fleet.agent(name).desired["$version"] != old.desired["$version"]
                    assert not (same and moved), "an equal manifest was written"

    asyncio.run(live())


@given(actions)
def test_one_evaluation_is_as_good_as_many(history):
    """Whatever happened since, an evaluation at the end comes to what the model says."""

    async def live():
        fleet = Fleet()
        for action in history:
            if action[0] != "edit":
                fleet.act(*action)
        await fleet.engine.evaluate()
        # What once was deployed stays only where it was written, so only the present counts.
        fleet.check()

    asyncio.run(live())
