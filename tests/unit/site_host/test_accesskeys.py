"""Keys of Secrets reach a running guest, once each time they change."""

import asyncio

from kvedge import errors
from kvedge.site.host import accesskeys


def credential(secret, *users):
    method = {"qemuGuestAgent": {"users": list(users)}}
    source = {"secret": {"secretName": secret}}
    return {"sshPublicKey": {"source": source, "propagationMethod": method}}


class Agent:
    """Keeps what it is told; refuses while it is away."""

    def __init__(self):
        self.away, self.seen = False, []

    async def command(self, name, **arguments):
        if self.away:
            raise errors.SiteError("the guest agent does not answer")
        assert name == "guest-ssh-add-authorized-keys"
        assert arguments["reset"]
        self.seen.append((arguments["username"], arguments["keys"]))


async def test_keys_follow_their_secrets(monkeypatch):
    """Each change is told once, in the Secrets' order; an agent that was away hears of it later."""
    monkeypatch.setattr(accesskeys, "_POLL_SECONDS", 0)
    secrets = {"a": {"keys": b"ssh-ed25519 A\n\nssh-ed25519 B\n"}, "b": {"k": b"ssh-ed25519 C"}}
    agent, told, booted = Agent(), [], False

    async def read(name):
        if name not in secrets:
            raise errors.NotFound("get", status=404)
        return secrets[name]

    async def turns():
        for _ in range(8):
            await asyncio.sleep(0)

    wanted = [credential("a", "edge", "root"), credential("b", "edge")]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            accesskeys.follow_keys(
                "g", wanted, read, agent, lambda: booted, lambda good, why: told.append((good, why))
            ),
            name="keys",
        )
        await turns()
        assert (agent.seen, told) == ([], [])
        booted = True
        await turns()
        assert agent.seen == [
            ("edge", ["ssh-ed25519 A", "ssh-ed25519 B", "ssh-ed25519 C"]),
            ("root", ["ssh-ed25519 A", "ssh-ed25519 B"]),
        ]
        agent.away = True
        secrets["b"] = {"k": b"ssh-ed25519 D"}
        await turns()
        assert told[-1] == (False, "the guest agent does not answer")
        agent.away = False
        await turns()
        assert agent.seen[2:] == [("edge", ["ssh-ed25519 A", "ssh-ed25519 B", "ssh-ed25519 D"])]
        assert told[-1] == (True, "")
        del secrets["a"]
        await turns()
        assert not told[-1][0]
        task.cancel()


def test_other_credentials_are_told_apart():
    """Passwords and boot-time methods are not done here."""
    assert not accesskeys.unsupported(credential("a", "edge"))
    assert accesskeys.unsupported(credential("a"))
    assert accesskeys.unsupported({"userPassword": {}})
    no_cloud = {"sshPublicKey": {"propagationMethod": {"noCloud": {}}}}
    assert accesskeys.unsupported(no_cloud)
