"""`kvedge up` and `kvedge down`: checks first, then the engine, then the fleet VM by VM.

Nothing is changed before settings, cluster, hub and registry are known to be good.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
from typing import TYPE_CHECKING, Any

from infra import (
    access_keys,
    admission,
    applied,
    fleet,
    growing,
    guest,
    hub_content,
    operators,
    publishing,
    rendering,
    rollout,
    sweeping,
)
from kvedge import errors, iothub, kube, settings
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from infra.engine import Engine, Event
    from kvedge import spec

__all__ = [
    "Outcome",
    "apply",
    "bring_up",
    "publishing_checked",
    "render",
    "roll_out",
    "take_down",
]

_FREE_MIB = 50
_KINDS = (("kubevirt.io/v1", "VirtualMachine"), ("cdi.kubevirt.io/v1beta1", "DataVolume"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done."""

    environment: str
    changes: dict[str, int]
    """Resources by `create`, `update`, `delete`, `replace`, `same`."""
    restarted: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    """What destroy had not known of."""


def bring_up(
    engine: Engine, *, seconds: float, wait: bool = True, progress: Progress = silent,
    builder: publishing.Builder | None = None,
) -> Outcome:  # fmt: skip
    """Bring an environment to what its settings say.

    Args:
        seconds: how long the fleet may take to be ready.
        wait: False to come back once the objects are written.

    Raises:
        SpecError: the settings are wrong; nothing was changed.
        KvedgeError: a part cannot be reached, the engine failed or a VM is not ready; each by name.
    """
    environment = settings.parse(engine.stack, engine.settings(), environ=os.environ)
    _refuse_full_disk(engine.file.parent)
    if environment.azure:
        environment = _cloud_up(engine, environment, progress)
    asyncio.run(_check(environment))
    if environment.operators:
        asyncio.run(_install(environment, environment.operators, progress))
    asyncio.run(_refuse_shrinking(environment))
    publishing_checked(environment)
    progress("checks", 1, 1)
    by = builder or publishing.builder()
    wanted = publishing.wanted_images(environment, by)
    for one in wanted:
        by.build(one, progress)
    guest.check_user_data(environment, _schema(environment, by))
    if not environment.ssh.authorized_keys:
        access_keys.make_user_key(environment)
    engine.prepare()
    told = _Told(progress, "pulumi up")
    changes = apply(engine, environment, wanted, on_event=told)
    told.end(changes)
    restarted = asyncio.run(_roll_out(environment, seconds, wait=wait, progress=progress))
    return Outcome(
        environment=environment.name,
        changes=changes,
        restarted=tuple(sorted({*told.restarted, *restarted})),
    )


def apply(
    engine: Engine, environment: spec.Environment, wanted: Sequence[publishing.Wanted], *,
    on_event: Callable[[Event], None],
) -> dict[str, int]:  # fmt: skip
    """Bring all that the engine keeps to what the settings say; return what was changed.

    Args:
        engine: prepared.
        wanted: the environment's images.

    Raises:
        KvedgeError: the cluster refuses an object, and nothing was made; or the engine failed.
    """
    made_from = applied.inputs(engine, environment, wanted)
    if same := applied.recall(engine, environment, made_from):
        return same
    applied.forget(environment)
    admitted = engine.empty
    asyncio.run(_admit(environment, wanted) if admitted else _note(environment))
    changes = engine.up(on_event=on_event, admitted=admitted)
    applied.note(engine, environment, made_from, changes)
    return changes


def take_down(engine: Engine, *, keep_data: bool = False, progress: Progress = silent) -> Outcome:
    """Take everything of an environment away.

    Raises:
        SpecError: the settings are wrong.
        KvedgeError: other environments need its platform, or something refused to go.
    """
    environment = settings.parse(engine.stack, engine.settings(), environ=os.environ)
    if environment.azure:
        from infra.cloud import running

        if not running.recall(environment, engine.settings(), progress=progress):
            # Without a hub there never was anything else.
            changes = _cloud_down(environment, progress)
            return Outcome(environment=environment.name, changes=changes)
        environment = settings.parse(engine.stack, engine.settings(), environ=os.environ)
    asyncio.run(_check(environment))
    asyncio.run(_refuse_needed(environment))
    progress("checks", 1, 1)
    applied.forget(environment)
    changes: dict[str, int] = {}
    failure: errors.KvedgeError | None = None
    if engine.exists():
        told = _Told(progress, "pulumi destroy")
        try:
            changes = engine.destroy(on_event=told)
        except errors.KvedgeError as cause:
            failure = cause
            progress("pulumi destroy", 1, 1, note="failed; sweeping")
        else:
            told.end(changes)
    swept = asyncio.run(_sweep(environment, keep_data=keep_data, progress=progress))
    if failure is not None:
        # All that the state spoke of is gone now, so the state says nothing true any more.
        engine.forget()
    if environment.azure:
        _cloud_down(environment, progress)
    return Outcome(environment=environment.name, changes=changes, swept=tuple(swept))


def roll_out(engine: Engine, *, progress: Progress = silent) -> list[str]:
    """Restart the VMs that changed since their start, a few at once; return their names.

    Raises:
        KvedgeError: a VM did not get healthy.
    """
    environment = settings.parse(engine.stack, engine.settings(), environ=os.environ)
    asyncio.run(_check(environment))
    return asyncio.run(_roll_out(environment, 0.0, wait=False, progress=progress))


def render(engine: Engine, out: Path, *, store: str, register: bool) -> list[Path]:
    """Write the environment's objects as files; return these.

    Args:
        store: a ClusterSecretStore for references; empty for plain Secrets.
        register: create what is missing in the hub as well.
    """
    if not engine.has_seed():
        engine.prepare()
    environment = settings.parse(engine.stack, engine.settings(seed=True), environ=os.environ)
    if not environment.ssh.authorized_keys:
        access_keys.make_user_key(environment)
    by = publishing.builder()
    guest.check_user_data(environment, _schema(environment, by))
    facts = rendering.facts_of(environment, by)
    if register:
        strings = asyncio.run(_register(environment))
        facts = dataclasses.replace(facts, connection_strings=strings)
    return rendering.write(rendering.rendered(environment, facts, store=store), out)


def _cloud_up(
    engine: Engine, environment: spec.Environment, progress: Progress
) -> spec.Environment:
    """Make what the section `azure` says; return the environment with what it gave."""
    from infra.cloud import running

    told = _Told(progress, "pulumi up (Azure)")
    told.end(running.bring_up(environment, engine.settings(), on_event=told, progress=progress))
    return settings.parse(engine.stack, engine.settings(), environ=os.environ)


def _cloud_down(environment: spec.Environment, progress: Progress) -> dict[str, int]:
    from infra.cloud import running

    told = _Told(progress, "pulumi destroy (Azure)")
    changes = running.take_down(environment, on_event=told, progress=progress)
    told.end(changes)
    return changes


async def _register(environment: spec.Environment) -> dict[str, str]:
    async with _hub(environment) as hub:
        if environment.platform:
            await _refuse_second_platform(environment, hub)
        return await rendering.register(environment, hub)


def publishing_checked(environment: spec.Environment) -> None:
    """Find out whether the registry answers, if images go through it."""
    if environment.registry.push:
        publishing.check_registry(environment.registry)


def _schema(environment: spec.Environment, by: publishing.Builder) -> Mapping[str, Any] | None:
    """Return the schema of the image's own cloud-init, if a VM has a cloud-config of its own."""
    if not any(vm.cloud_init for vm in environment.fleet):
        return None
    return by.schema(environment.image.reference or environment.image.recipe)


class _Told:
    """Shows the engine's events as one task: how many of the planned changes are done."""

    def __init__(self, progress: Progress, task: str) -> None:
        self._progress, self._task = progress, task
        self._done, self._total = 0, 0
        self.restarted: set[str] = set()
        progress(task)

    def __call__(self, event: Event) -> None:
        if event.kind == "stage":
            self.restarted.add(event.name)
            self._progress(f"VM {event.name}", event.share, 1.0, event.note)
            return
        if event.kind == "plan":
            self._total = event.count
        elif event.kind == "done" and event.operation != "same":
            self._done += 1
        total = float(self._total + 1) if self._total else None
        self._progress(self._task, min(self._done, self._total or self._done), total, event.name)

    def end(self, changes: dict[str, int]) -> None:
        """Tell that the run is through."""
        changed = {k: v for k, v in changes.items() if k != "same"}
        note = ", ".join(f"{count} {kind}" for kind, count in sorted(changed.items()))
        total = float(self._total + 1)
        self._progress(self._task, total, total, note or "no changes")


def _refuse_full_disk(folder: Path) -> None:
    """Find out whether the run's own files, which are a few MiB, have room."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free // 2**20
    if free < _FREE_MIB:
        raise errors.KvedgeError(
            f"only {free} MiB free for {str(folder)!r}, a run needs {_FREE_MIB} MiB",
            hint="free some space, or keep the state elsewhere: KVEDGE_STATE, PULUMI_BACKEND_URL",
        )


async def _check(environment: spec.Environment) -> None:
    """Find out whether cluster and hub can be used.

    Raises:
        KvedgeError: one cannot, and which.
    """
    async with _client(environment) as client:
        await client.request("GET", "/version", timeout=15)
        namespace = environment.cluster.namespace
        try:
            await client.get(f"/api/v1/namespaces/{namespace}")
        except errors.NotFound as cause:
            raise errors.KvedgeError(
                f"namespace {namespace!r} is not there",
                hint=f"kubectl create namespace {namespace}",
            ) from cause
        for api_version, kind in () if environment.operators else _KINDS:
            try:
                await client.path_of(api_version, kind)
            except errors.NotFound as cause:
                raise errors.KvedgeError(
                    f"the cluster knows no {kind!r}",
                    hint="install KubeVirt and CDI on it, or put `operators: {}` into the settings",
                ) from cause
    async with _hub(environment, patient=False) as hub:
        await hub.statistics()
        if environment.platform:
            await _refuse_second_platform(environment, hub)


async def _install(
    environment: spec.Environment, wanted: spec.Operators, progress: Progress
) -> None:
    async with _client(environment) as client:
        await operators.install(client, wanted, progress=progress)


async def _refuse_second_platform(environment: spec.Environment, hub: iothub.Hub) -> None:
    mine = hub_content.base_owner(environment)
    for found in await hub.configurations(lane=iothub.Lane.URGENT):
        labels = found.get("labels") or {}
        owner = labels.get(hub_content.OWNER_LABEL, mine)
        if labels.get(hub_content.ROLE_LABEL) == "base" and owner != mine:
            raise errors.KvedgeError(
                f"environment {environment.name!r} has a platform section, but environment "
                f"{owner.rpartition('/')[2]!r} carries this hub's platform already",
                hint="leave the section out: one platform serves all environments of a hub",
            )


async def _admit(environment: spec.Environment, wanted: Sequence[publishing.Wanted]) -> None:
    async with _client(environment) as client:
        await admission.admit(client, environment, wanted)


async def _note(environment: spec.Environment) -> None:
    async with _client(environment) as client:
        await rollout.note(client, _members(environment))


async def _refuse_shrinking(environment: spec.Environment) -> None:
    async with _client(environment) as client:
        sizes = growing.sizes_of(environment)
        await growing.planned(client, environment.cluster.namespace, sizes)


async def _roll_out(
    environment: spec.Environment, seconds: float, *, wait: bool, progress: Progress
) -> list[str]:
    members = _members(environment)

    def on_stage(name: str, stage: fleet.Stage) -> None:
        progress(f"VM {name}", stage.share, 1.0, stage.text)

    async with _client(environment) as client, _hub(environment) as hub:
        restarted = await rollout.roll_out(
            client, hub, members, environment.rollout, on_stage=on_stage
        )
        if wait:
            await fleet.wait_ready(client, hub, members, seconds=seconds, on_stage=on_stage)
    return restarted


def _members(environment: spec.Environment) -> list[fleet.Member]:
    return [
        fleet.Member(
            name=vm.name,
            namespace=environment.cluster.namespace,
            device_id=environment.device_id(vm),
        )
        for vm in environment.fleet
    ]


async def _refuse_needed(environment: spec.Environment) -> None:
    if environment.platform is None:
        return
    async with _hub(environment, patient=False) as hub:
        others = await sweeping.foreign_devices(hub, environment)
    if others:
        shown = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        raise errors.KvedgeError(
            f"environment {environment.name!r} carries the platform that {len(others)} devices of "
            f"other environments need: {shown}",
            hint="take these environments down first",
        )


async def _sweep(
    environment: spec.Environment, *, keep_data: bool, progress: Progress
) -> list[str]:
    async with _client(environment) as client, _hub(environment) as hub:
        return await sweeping.sweep(
            environment, client, hub, keep_data=keep_data, progress=progress
        )


def _client(environment: spec.Environment) -> kube.Client:
    cluster = environment.cluster
    return kube.Client(kube.load_config(cluster.kubeconfig, cluster.context))


def _hub(environment: spec.Environment, *, patient: bool = True) -> iothub.Hub:
    """Return a connection; an impatient one fails at once, for checks."""
    more: dict[str, Any] = {} if patient else {"backoff": iothub.Backoff(tries=1)}
    return iothub.Hub.from_connection_string(
        environment.hub.connection_string, ca_file=environment.hub.ca_file, **more
    )
