"""The provider of docs/howto/own-provider.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvedge import errors
from kvedge.node import Executes
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(180)
PAGE = Path(__file__).parents[3] / "docs" / "howto" / "own-provider.md"


async def test_the_page_s_provider_runs_pods(client, namespace, start_node):
    """Its first block makes a class that takes a pod, shows it Running and lets it go."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(blocks[0], scope)
    compile(blocks[1], "second block", "exec")
    provider = scope["Notebook"]()
    assert not isinstance(provider, Executes)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node(provider=provider) as node:
        body = {"nodeName": node.spec.name, "containers": [{"name": "c", "image": "i"}]}
        await client.post(pods, {"metadata": {"name": "hello"}, "spec": body})

        async def running():
            found = await client.get(f"{pods}/hello")
            return found["status"].get("phase") == "Running"

        await until_async(running)
        assert list(provider.pods.values()) == ["hello"]
        await client.delete(f"{pods}/hello")

        async def gone():
            try:
                await client.get(f"{pods}/hello")
            except errors.NotFound:
                return True
            return False

        await until_async(gone)
        assert provider.pods == {}
