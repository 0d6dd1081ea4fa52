"""The guest agent's client against a small agent that speaks the same protocol on a unix socket."""

import asyncio
import json

import pytest

from kvedge import errors
from kvedge.site.host.guestinfo import network_interfaces, os_info
from kvedge.site.host.monitor import GuestAgent
from kvedge.site.host.probes import AgentTarget, parse_probe, passes

_ANSWERS = {
    "guest-ping": {},
    "guest-get-osinfo": {"id": "debian", "pretty-name": "Debian GNU/Linux 12", "version-id": "12"},
    "guest-network-get-interfaces": [
        {"name": "lo"},
        {"name": "eth0", "hardware-address": "02:00:00:00:00:AA"},
    ],
    "guest-exec": {"pid": 7},
    "guest-exec-status": {"exited": True, "exitcode": 3},
}


async def _agent(reader, writer, *, stale):
    if stale:
        # What an earlier client did not read any more comes first.
        writer.write(b'{"return": {"old": 1}}\n')
    while line := await reader.readline():
        request = json.loads(line.lstrip(b"\xff"))
        name = request["execute"]
        if name == "guest-sync-delimited":
            writer.write(
                b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
            )
        elif name == "guest-get-users":
            await asyncio.sleep(60)
        elif name in _ANSWERS:
            writer.write(json.dumps({"return": _ANSWERS[name]}).encode() + b"\n")
        else:
            writer.write(json.dumps({"error": {"desc": "unknown command"}}).encode() + b"\n")


@pytest.fixture
async def agent(tmp_path):
    """An agent with a stale answer in its channel."""
    path = tmp_path / "agent.sock"
    server = await asyncio.start_unix_server(lambda r, w: _agent(r, w, stale=True), path)
    client = GuestAgent(path)
    yield client
    client.close()
    server.close()


async def test_stale_answers_are_skipped(agent):
    """The channel is synchronised before the first command."""
    assert await os_info(agent) == {
        "id": "debian",
        "prettyName": "Debian GNU/Linux 12",
        "versionId": "12",
    }


async def test_interfaces_are_known_by_their_mac(agent):
    """An interface without an address, such as lo, is left out."""
    assert await network_interfaces(agent) == {"02:00:00:00:00:aa": "eth0"}


async def test_a_slow_answer_does_not_become_the_next_one(agent):
    """After a time-out the channel is opened anew."""
    with pytest.raises(errors.SiteError, match="does not answer"):
        await agent.command("guest-get-users", 0.2)
    assert await agent.command("guest-ping") == {}


async def test_a_refusal_carries_the_agents_words(agent):
    """An agent may have commands switched off."""
    with pytest.raises(errors.SiteError, match="unknown command"):
        await agent.command("guest-fsfreeze-freeze")


async def test_no_agent_is_an_error_not_a_hang(tmp_path):
    """A guest without a channel answers at once."""
    with pytest.raises(errors.SiteError, match="does not answer"):
        await GuestAgent(tmp_path / "none.sock").command("guest-ping", 0.5)


async def test_probes_through_the_agent(agent):
    """A ping passes; a command that ends with 3 does not."""
    target = AgentTarget(address="127.0.0.1", ports={}, agent=agent)
    assert await passes(parse_probe({"guestAgentPing": {}}), target)
    assert not await passes(parse_probe({"exec": {"command": ["false"]}}), target)
