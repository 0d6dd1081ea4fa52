"""The fleet page in a real browser: headless Chromium, driven by its own protocol."""

from __future__ import annotations

import re
import shutil
import tempfile

import aiohttp
import pytest

from kvedge import processes
from kvedge.survey import Fleet, VmRow, page
from kvedge.testing.waiting import until

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=document.title='taken'>"
LOOK = """
({
    title: document.title,
    vms: [...document.querySelectorAll("#vms td")].map(cell => cell.innerText),
    good: getComputedStyle(document.querySelector("#vms .good")).color,
    bad: getComputedStyle(document.querySelector("#devices .bad")).color,
    images: document.images.length,
    scripts: document.scripts.length,
    rules: document.styleSheets[0].cssRules.length,
})
"""


@pytest.fixture
def browser(tmp_path):
    """Start the browser; yield the address of its protocol (scripts/setup installs it)."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"none of {', '.join(PROGRAMS)} is installed: scripts/setup dev"
    log = tmp_path / "log"
    with tempfile.TemporaryDirectory() as profile:
        child = processes.popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0",
                f"--user-data-dir={profile}", "about:blank",
            ],
            log=log,
        )  # fmt: skip
        try:
            pattern = r"DevTools listening on ws://([^/\s]+)/"
            found = until(
                lambda: re.search(pattern, log.read_text()) if log.exists() else None,
                "the browser listens", seconds=60,
            )  # fmt: skip
            yield f"http://{found[1]}"
        finally:
            child.terminate()
            child.wait(20)


class Tab:
    """One tab; `ask` calls a method of https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, stream):
        self._stream, self._number = stream, 0
        self.events = []

    async def ask(self, method, **params):
        self._number += 1
        await self._stream.send_json({"id": self._number, "method": method, "params": params})
        while True:
            said = await self._stream.receive_json()
            if said.get("id") == self._number:
                return said["result"]
            self.events.append(said)

    async def event(self, method):
        while True:
            found = next((one for one in self.events if one["method"] == method), None)
            if found:
                return found
            self.events.append(await self._stream.receive_json())


async def test_a_browser_shows_what_was_read_and_runs_nothing(browser):
    """Cells hold the names as text, the style sheet is in force, and nothing was blocked or run."""
    vm = VmRow(
        environment="dev", namespace="plant", name=HOSTILE, status="Running", ready=True,
        agent=True, address="127.0.0.1:22", device="dev-edge1", connection="Disconnected",
        deployments={"base": "Applied"}, modules={"sensor": "running"}, pods=(),
    )  # fmt: skip
    fleet = Fleet(vms=(vm,), pods=(), notes=())

    async def read():
        return page.View(fleet=fleet, rollouts=(), cluster="https://c", hub="h", time="now")

    async with (
        page.serve(read) as url,
        aiohttp.ClientSession() as session,
        session.put(f"{browser}/json/new?about:blank") as answer,
        session.ws_connect((await answer.json())["webSocketDebuggerUrl"]) as stream,
    ):
        tab = Tab(stream)
        for domain in ("Page", "Log", "Runtime"):
            await tab.ask(f"{domain}.enable")
        await tab.ask("Page.navigate", url=url)
        await tab.event("Page.loadEventFired")
        found = await tab.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)
    seen = found["result"]["value"]
    assert seen["title"] == "kvedge fleet"
    assert seen["vms"] == [f"plant/{HOSTILE}", "dev", "Running", "yes", "yes", "127.0.0.1:22"]
    assert (seen["images"], seen["scripts"]) == (0, 0)
    assert seen["rules"] > 5
    assert (seen["good"], seen["bad"]) == ("rgb(17, 99, 41)", "rgb(164, 14, 38)")
    told = [one["params"]["entry"] for one in tab.events if one["method"] == "Log.entryAdded"]
    assert told == []
