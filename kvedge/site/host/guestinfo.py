"""What the agent in a guest tells, in the shapes of KubeVirt's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from kvedge.site.host.monitor import GuestAgent

__all__ = ["filesystem_list", "guest_info", "network_interfaces", "os_info", "user_list"]

_OS_FIELDS = {
    "name": "name",
    "kernel-release": "kernelRelease",
    "version": "version",
    "pretty-name": "prettyName",
    "version-id": "versionId",
    "kernel-version": "kernelVersion",
    "machine": "machine",
    "id": "id",
}


async def os_info(agent: GuestAgent) -> dict[str, str]:
    """Return the VMI's guestOSInfo."""
    found = await agent.command("guest-get-osinfo")
    return {ours: found[theirs] for theirs, ours in _OS_FIELDS.items() if found.get(theirs)}


async def network_interfaces(agent: GuestAgent) -> dict[str, str]:
    """Return the guest's interface names by MAC address in lower case."""
    found = await agent.command("guest-network-get-interfaces")
    return {
        item["hardware-address"].lower(): item["name"]
        for item in found
        if item.get("hardware-address")
    }


async def user_list(agent: GuestAgent) -> list[dict[str, Any]]:
    """Return the users that are logged in."""
    return [
        {
            "userName": user["user"],
            **({"domain": user["domain"]} if user.get("domain") else {}),
            "loginTime": user.get("login-time", 0),
        }
        for user in await agent.command("guest-get-users")
    ]


async def filesystem_list(agent: GuestAgent) -> list[dict[str, Any]]:
    """Return the mounted file systems."""
    return [
        {
            "diskName": item["name"],
            "mountPoint": item["mountpoint"],
            "fileSystemType": item["type"],
            "usedBytes": item.get("used-bytes", 0),
            "totalBytes": item.get("total-bytes", 0),
            "disk": [
                {"busType": disk.get("bus-type", ""), "serial": disk.get("serial", "")}
                for disk in item.get("disk") or ()
            ],
        }
        for item in await agent.command("guest-get-fsinfo")
    ]


async def guest_info(agent: GuestAgent) -> dict[str, Any]:
    """Return a VirtualMachineInstanceGuestAgentInfo."""
    info = await agent.command("guest-info")
    zone = await _or(agent, "guest-get-timezone", {})
    return {
        "guestAgentVersion": info["version"],
        "supportedCommands": [
            {"name": item["name"], "enabled": item["enabled"]}
            for item in info.get("supported_commands") or ()
        ],
        "hostname": (await _or(agent, "guest-get-host-name", {})).get("host-name", ""),
        "os": await os_info(agent),
        "timezone": f"{zone['zone']}, {zone.get('offset', 0)}" if zone.get("zone") else "",
        "userList": await user_list(agent),
        "fsInfo": {"disks": await filesystem_list(agent)},
        "fsFreezeStatus": await _or(agent, "guest-fsfreeze-status", ""),
    }


async def _or(agent: GuestAgent, command: str, default: Any) -> Any:
    try:
        return await agent.command(command)
    except errors.SiteError:
        return default
