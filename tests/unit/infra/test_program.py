"""The program under pulumi's mocks: what is registered, without any engine."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pulumi
import pytest

from infra import program, publishing
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from kvedge import spec


class Mocks(pulumi.runtime.Mocks):
    """Answers registrations with their inputs; keeps them."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        """Register one resource."""
        self.seen[args.name] = {"type": args.typ, **args.inputs}
        outs = dict(args.inputs)
        if args.typ.endswith("EdgeDevice"):
            outs["connection_string"] = "HostName=h;DeviceId=d;SharedAccessKey=DEVICEKEY123"
        if args.typ.endswith("BootImage"):
            outs["reference"] = (
                f"registry.example.net/{args.inputs['repository']}@sha256:{'1' * 64}"
            )
        return f"{args.name}-id", outs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        """No functions are called."""
        raise AssertionError(args.token)


class Builder:
    """Keys by name; nothing is built."""

    def key(self, kind: str, name: str) -> str:
        """Return a key."""
        return f"oci-{kind}{name}".ljust(36, "0")

    def schema(self, image: str) -> None:
        """No image, no schema."""

    def build(self, wanted: publishing.Wanted, progress: Progress = silent) -> Any:
        """Refuse: registering builds nothing."""
        raise AssertionError(wanted)

    def publish(
        self, wanted: publishing.Wanted, registry: spec.Registry, progress: Progress = silent
    ) -> str:
        """Refuse."""
        raise AssertionError(wanted)

    def remove(self, wanted: publishing.Wanted, registry: spec.Registry, digest: str) -> None:
        """Refuse."""
        raise AssertionError(wanted)


def registered(environment: spec.Environment, *, preview: bool = False) -> dict[str, Any]:
    """Run the program and return what it registered, by logical name."""
    mocks = Mocks()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        pulumi.runtime.set_mocks(mocks, project="kvedge", stack="plant", preview=preview)

        async def run() -> None:
            await program.build(environment, Builder())
            await pulumi.runtime.stack.wait_for_rpcs()

        loop.run_until_complete(run())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return mocks.seen


@pytest.fixture
def seen(environment: spec.Environment) -> dict[str, Any]:
    """What the whole environment registers."""
    return registered(environment)


def test_everything_of_a_vm_is_registered(seen: dict[str, Any]) -> None:
    """Device, Secrets, disks, machine and Service, each with a fixed name."""
    for name in ("edge1", "edge2"):
        assert {
            f"{name}-device", f"{name}-edge", f"{name}-cloudinit", f"{name}-data", f"{name}-ssh",
        } <= set(seen)  # fmt: skip
    assert any(name.startswith("edge1-os-") for name in seen)
    assert {"base", "fleet", "iot-edge-connector-deployment"} <= set(seen)


def test_the_disk_is_imported_by_digest(seen: dict[str, Any]) -> None:
    """The DataVolume gets the digest that the push returned."""
    disk = next(v for k, v in seen.items() if k.startswith("edge1-os-"))
    url = disk["spec"]["source"]["registry"]["url"]
    assert url == f"docker://registry.example.net/kvedge/debian-12-edge@sha256:{'1' * 64}"


def test_only_the_secret_holds_the_device_key(seen: dict[str, Any]) -> None:
    """The key goes from the hub to the secret disk and nowhere else."""
    import base64

    marked = seen["edge1-edge"]["data"]
    assert pulumi.runtime.rpc._special_sig_key in marked, "not marked as a secret"
    encoded = marked["value"]["config.toml"]
    assert b"DEVICEKEY" in base64.b64decode(encoded)
    rest = {k: v for k, v in seen.items() if not k.endswith("-edge")}
    assert "DEVICEKEY" not in str(rest)
    assert encoded not in str(rest)


def test_secret_values_are_marked(environment: spec.Environment) -> None:
    """No provider is stored as code, and none as a secret blob."""
    inputs = registered(environment)["edge1-device"]
    assert len(inputs["__provider"]) < 200


def test_without_a_platform_there_is_no_connector(environment: spec.Environment) -> None:
    """Other environments of a hub add VMs and devices only."""
    seen = registered(dataclasses.replace(environment, platform=None))
    kinds = {v["type"] for v in seen.values()}
    assert "kubernetes:apps/v1:Deployment" not in kinds
    assert not any(kind.endswith("EdgeBase") for kind in kinds)
    assert "image-temperature-sensor" not in seen
    assert not seen["image-debian-12-edge"]["owned"]


def test_a_given_image_is_not_built(environment: spec.Environment) -> None:
    """An image by digest needs no recipe and no push."""
    reference = f"registry.example.net/edge/own@sha256:{'2' * 64}"
    image = dataclasses.replace(environment.image, reference=reference)
    seen = registered(dataclasses.replace(environment, image=image, platform=None))
    assert not any(v["type"].endswith("BootImage") for v in seen.values())
    disk = next(v for k, v in seen.items() if k.startswith("edge1-os-"))
    assert disk["spec"]["source"]["registry"]["url"] == f"docker://{reference}"


def test_a_preview_registers_the_same(environment: spec.Environment) -> None:
    """Nothing depends on values that only a run knows."""
    assert set(registered(environment, preview=True)) == set(registered(environment))


@pytest.mark.parametrize(("debug", "told"), [("no", []), ("yes", ["x"])])
def test_kvedge_s_own_runs_send_no_debug_lines(
    monkeypatch: pytest.MonkeyPatch, debug: str, told: list[str]
) -> None:
    """Each would be a call that the program waits for; a user's own `pulumi up` keeps them."""
    heard: list[str] = []
    monkeypatch.setattr(pulumi.log, "debug", heard.append)
    monkeypatch.setattr(pulumi, "run", lambda _: pulumi.log.debug("x"))
    monkeypatch.setenv("KVEDGE_SDK_DEBUG", debug)
    program.main()
    assert heard == told
