"""The fleet page, read by an HTML parser: what is in it, and that nobody can put more into it.

What a real browser makes of it: test_browser.py.
"""

from __future__ import annotations

import html.parser
import socket

import aiohttp
import pytest

from kvedge import errors
from kvedge.survey import Fleet, PodRow, VmRow, page
from kvedge.testing import kinds


class Reader(html.parser.HTMLParser):
    """Collects tables by id and all tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self._table, self._cell = {}, [], None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs)["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag == "br" and self._cell is not None:
            self._cell += "; "

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._table[-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data


def vm(**more):
    """Return a VM that is fine."""
    given = {
        "environment": "dev",
        "namespace": "plant",
        "name": "edge1",
        "status": "Running",
        "ready": True,
        "agent": True,
        "address": "127.0.0.1:22",
        "device": "dev-edge1",
        "connection": "Connected",
        "deployments": {"base": "Applied", "layer": "Targeted"},
        "modules": {"sensor": "running"},
        "pods": ("plant/sensor",),
    }
    return VmRow(**{**given, **more})


def rollout(**more):
    """Return a deployment that is done."""
    given = {"name": "layer", "workload": "plant/sensor", "condition": "tags.a='b'", "priority": 5,
             "targeted": 2, "applied": 2, "succeeded": 2, "failed": 0}  # fmt: skip
    return page.Rollout(**{**given, **more})


def view(*vms, rollouts=(), pods=(), notes=()):
    """Return a view of these things."""
    fleet = Fleet(vms=vms, pods=pods, notes=notes)
    return page.View(
        fleet=fleet, rollouts=rollouts, cluster="https://c", hub="h", time="2026-01-01"
    )


def test_all_four_tables_are_there():
    """VMs, devices, roll-outs and pods show what was read."""
    pod = PodRow(namespace="plant", name="p-1", workload="sensor", ready="1/1", status="Running")
    found = Reader(page.render(view(vm(), rollouts=(rollout(),), pods=(pod,))))
    assert found.tables["vms"][1] == ["plant/edge1", "dev", "Running", "yes", "yes", "127.0.0.1:22"]
    assert found.tables["devices"][1] == [
        "dev-edge1", "Connected", "base: Applied; layer: Targeted", "sensor: running",
    ]  # fmt: skip
    assert found.tables["rollouts"][1] == [
        "layer", "done", "plant/sensor", "5", "2 of tags.a='b'", "2", "2", "0",
    ]  # fmt: skip
    assert found.tables["pods"][1] == ["plant/p-1", "1/1", "Running", "sensor"]


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ({"targeted": 0, "succeeded": 0}, "waits"),
        ({"succeeded": 1}, "rolls out"),
        ({"succeeded": 1, "failed": 1}, "failing"),
        ({}, "done"),
    ],
)
def test_a_rollout_has_one_word(counts, word):
    """The state follows from the hub's counts; one failure outweighs the rest."""
    assert rollout(**counts).word == word


def test_names_cannot_bring_markup():
    """Whatever a device or an object calls itself, it stays text."""
    bad = "<script>alert(1)</script>"
    hostile = vm(name=bad, address=bad, modules={bad: bad}, deployments={bad: bad}, connection=bad)
    pod = PodRow(namespace=bad, name=bad, workload=bad, ready=bad, status=bad)
    found = Reader(
        page.render(
            view(hostile, rollouts=(rollout(name=bad, condition=bad),), pods=(pod,), notes=(bad,))
        )
    )
    assert "script" not in {tag for tag, _ in found.tags}
    assert bad in found.tables["vms"][1][0]


async def test_the_server_is_read_only_and_for_this_machine(good):
    """It answers GET under local names only, allows no script, and reads a cluster as it is."""
    names = (("VirtualMachine", "virtualmachines"),
             ("VirtualMachineInstance", "virtualmachineinstances"))  # fmt: skip
    await kinds.install(good, [kinds.definition("kubevirt.io", "v1", *one) for one in names])
    reads = []

    async def read():
        reads.append(1)
        return await page.read_view(good, None)

    async with page.serve(read) as url, aiohttp.ClientSession() as session:
        assert url.startswith("http://127.0.0.1:")
        for _ in range(5):
            async with session.get(url) as answer:
                text = await answer.text()
                assert answer.status == 200
        assert len(reads) < 5
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert Reader(text).tags[0] == ("html", {"lang": "en"})
        async with session.get(f"{url}style.css") as answer:
            assert answer.content_type == "text/css"
        async with session.post(url) as answer:
            assert answer.status == 405
        async with session.get(url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 421


async def test_an_outage_shows_on_the_page():
    """A cluster that does not answer is a page with the reason, not an empty fleet."""

    async def read():
        raise errors.RemoteError("GET /x", status=503, details="<down>")

    async with (
        page.serve(read) as url,
        aiohttp.ClientSession() as session,
        session.get(url) as answer,
    ):
        assert answer.status == 503
        assert "&lt;down&gt;" in await answer.text()


async def test_a_taken_port_is_told():
    """The message names the port and the option."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(errors.KvedgeError, match=str(port)):
            async with page.serve(lambda: None, port=port):
                pass
