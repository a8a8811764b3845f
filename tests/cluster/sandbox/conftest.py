from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic, DefaultAioHttpClient, DefaultAsyncHttpxClient

from agentcloud.cluster.sandbox import Sandbox

KEY = "sandbox-test"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox with its defaults; afterwards no call is left open."""
    async with Sandbox() as running:
        yield running
    assert running.core.calls.in_flight == 0


@pytest.fixture(params=["httpx", "aiohttp"])
async def client(request: pytest.FixtureRequest, sandbox: Sandbox) -> AsyncIterator[AsyncAnthropic]:
    """The real client over both of its transports."""
    kind = DefaultAioHttpClient if request.param == "aiohttp" else DefaultAsyncHttpxClient
    # Without the certificates that plain HTTP does not need: they take 30 ms to load.
    transport = kind(verify=False)
    async with AsyncAnthropic(
        base_url=sandbox.url, api_key=KEY, max_retries=0, http_client=transport
    ) as connected:
        yield connected
