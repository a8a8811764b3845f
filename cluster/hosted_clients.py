"""One anthropic client an account and event loop, shared by every endpoint of the process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from anthropic import AsyncAnthropic, DefaultAioHttpClient

from agentcloud.cluster.config_models import Account

ANTHROPIC_URL: Final = "https://api.anthropic.com"
#: Server, and where its key comes from: what makes two accounts one client.
_Key = tuple[str, str, str]


@dataclass(slots=True)
class SharedClient:
    """A client and how many endpoints hold it."""

    client: AsyncAnthropic
    holders: int = 0


# By event loop, because connections belong to the loop that opened them.
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, SharedClient]] = (
    WeakKeyDictionary()
)


class ClientPool:
    """An endpoint's hold on its account's client, one in every loop it is used in."""

    def __init__(self, account: Account, where: str) -> None:
        self._account = account
        self._where = where
        self._key: _Key = (
            account.base_url or ANTHROPIC_URL,
            account.api_key_env,
            str(account.api_key_file or ""),
        )
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncAnthropic] = (
            WeakKeyDictionary()
        )

    def get(self) -> AsyncAnthropic:
        """The client of the running loop.

        Raises:
            ConfigError: this node has no key for the account.
        """
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is not None:
            return held
        here = _shared.setdefault(loop, {})
        if self._key not in here:
            here[self._key] = SharedClient(self._open())
        here[self._key].holders += 1
        self._held[loop] = here[self._key].client
        return here[self._key].client

    async def close(self) -> None:
        """Give the running loop's client back; the last holder closes it."""
        loop = asyncio.get_running_loop()
        if self._held.pop(loop, None) is None:
            return
        shared = _shared[loop][self._key]
        shared.holders -= 1
        if not shared.holders:
            del _shared[loop][self._key]
            await shared.client.close()

    def _open(self) -> AsyncAnthropic:
        return AsyncAnthropic(
            api_key=self._account.key(self._where).get_secret_value(),
            base_url=self._key[0],
            max_retries=0,
            http_client=DefaultAioHttpClient(),
        )
