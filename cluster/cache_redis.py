"""Where the response cache keeps its answers: a Redis, which forgets by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from agentcloud.cluster.cache_store import AnswersLost
from agentcloud.cluster.cache_wire import Entry
from agentcloud.cluster.errors import ConfigError

if TYPE_CHECKING:
    from redis import Redis

_WHERE: Final = "fleet.yaml: cache.url"
_PREFIX: Final = "agentcloud:response:"
#: Of one command: a Redis that does not answer must not hold calls up.
_TIMEOUT_S: Final = 1.0


class RedisAnswers:
    """Answers under `agentcloud:response:KEY`, each with its own end."""

    def __init__(self, client: Redis, *, ttl_s: float) -> None:
        """Nothing is asked before the first read.

        Args:
            client: the way to it.
            ttl_s: how long an answer is kept.
        """
        self._client = client
        self._ttl_s = ttl_s

    def __repr__(self) -> str:
        return "<RedisAnswers>"

    def read(self, keys: Sequence[str]) -> dict[str, Entry]:
        """As `Answers.read`."""
        from redis import RedisError

        if not keys:
            return {}
        try:
            values = self._client.mget([_PREFIX + key for key in keys])
        except RedisError as error:
            raise AnswersLost(str(error)) from error
        return {
            key: _unpacked(value)
            for key, value in zip(keys, values, strict=True)
            if isinstance(value, bytes)
        }

    def write(self, entries: Mapping[str, Entry]) -> None:
        """As `Answers.write`."""
        from redis import RedisError

        if not entries:
            return
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for key, entry in entries.items():
                    pipe.set(_PREFIX + key, _packed(entry), px=max(1, int(self._ttl_s * 1000)))
                pipe.execute()
        except RedisError as error:
            raise AnswersLost(str(error)) from error

    def held(self) -> None:
        """As `Answers.held`: Redis tells only of all its keys together."""
        return

    def close(self) -> None:
        """As `Answers.close`."""
        self._client.close()


def open_redis_answers(url: str, *, ttl_s: float) -> RedisAnswers:
    """Connect to a Redis.

    Raises:
        ConfigError: its client is not installed, or it does not answer.
    """
    try:
        from redis import Redis, RedisError
    except ModuleNotFoundError:
        raise ConfigError(
            "Redis needs its client; pip install 'agentcloud[redis]' on the head node",
            where=_WHERE,
        ) from None
    try:
        client = Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        client.ping()
    except (RedisError, ValueError, OSError) as error:
        parts = urlsplit(url)
        host = parts.hostname or parts.path  # Never the password.
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"Redis at {host} cannot be used ({said}); start it, mend the URL, or leave it out: "
            f"then answers are kept where `store` is",
            where=_WHERE,
        ) from None
    return RedisAnswers(client, ttl_s=ttl_s)


def _packed(entry: Entry) -> bytes:
    saved = None if entry.saved_usd is None else format(entry.saved_usd, "f")
    return to_json([entry.made_unix_s, saved]) + b"\n" + entry.body


def _unpacked(value: bytes) -> Entry:
    head, _, body = value.partition(b"\n")
    made_unix_s, saved = from_json(head)
    return Entry(made_unix_s, None if saved is None else Decimal(saved), body)
