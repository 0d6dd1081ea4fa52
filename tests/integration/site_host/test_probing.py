"""Probes against real listeners."""

import asyncio
import dataclasses

from aiohttp import web

from kvedge.site.host.probes import parse_probe, passes, watch_probe


@dataclasses.dataclass
class _Target:
    address: str = "127.0.0.1"
    ports: dict = dataclasses.field(default_factory=dict)
    good: bool = True

    async def run(self, argv, seconds):
        return self.good

    async def ping(self, seconds):
        return self.good


async def test_tcp_and_http():
    """An open port passes, a closed one and an error answer do not; port names are looked up."""

    async def answer(request):
        return web.Response(status=int(request.query.get("code", "200")))

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    target = _Target(ports={"web": port})
    try:
        assert await passes(parse_probe({"tcpSocket": {"port": "web"}}), target)
        assert await passes(parse_probe({"httpGet": {"port": port}}), target)
        assert not await passes(
            parse_probe({"httpGet": {"port": port, "path": "/?code=500"}}), target
        )
        assert not await passes(parse_probe({"tcpSocket": {"port": "none"}}), target)
    finally:
        await runner.cleanup()
    assert not await passes(parse_probe({"tcpSocket": {"port": port}}), target)


async def test_thresholds_turn_the_result_around():
    """One success makes ready, the given number of failures in a row makes unready."""
    target = _Target()
    seen = []
    changed = asyncio.Event()

    def hear(good):
        seen.append(good)
        changed.set()

    probe = parse_probe({"guestAgentPing": {}, "periodSeconds": 0.01, "failureThreshold": 3})
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(watch_probe(probe, target, hear))
        await changed.wait()
        changed.clear()
        target.good = False
        await changed.wait()
        task.cancel()
    assert seen == [True, False]
