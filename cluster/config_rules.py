"""Sections of fleet.yaml that say how calls are treated: retries, health, batches, alarms.

Also what of answers is kept (`cache:`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from agentcloud.cluster.config_models import Section
from agentcloud.cluster.errors import ConfigError

_REDIS: Final = ("redis", "rediss", "unix")


class Retry(Section):
    """The one transport retry loop.

    Attributes:
        max_attempts: the most sends of one call over all endpoints.
        base_s: first backoff; doubles each time, with full jitter.
        max_backoff_s: the longest backoff of our own; a server's `retry-after` is obeyed in full.
        timeout_s: the longest one send may take.
        ratio: sends after a call's first one that an endpoint may be given, as a share of the
            first sends that it was given: what keeps an outage from becoming a storm. When it is
            used up, a failed call gives its error to the caller instead of being sent again.
        allowance: such sends beyond the share, for low traffic and for one wave of failures;
            they are earned back at the same share.
    """

    max_attempts: PositiveInt = 4
    base_s: PositiveFloat = 0.5
    max_backoff_s: PositiveFloat = 30.0
    timeout_s: PositiveFloat = 600.0
    ratio: Annotated[float, Field(ge=0, le=10)] = 0.2
    allowance: Annotated[int, Field(ge=0)] = 100


class Hedge(Section):
    """Second sends of slow calls that their caller marked `Routing(idempotent=True)`.

    Attributes:
        percentile: a call that runs longer than this fraction of its class did is slow.
        max_share: how many of the marked calls may be sent twice; 0 switches hedging off.
        min_calls: calls of a class that must have been answered before any of it counts as slow.
    """

    percentile: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    max_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_calls: PositiveInt = 20


class Health(Section):
    """When a replica counts as dead.

    Attributes:
        stall_s: requests running and no new token for so long.
        report_s: how often replicas report their load.
    """

    stall_s: PositiveFloat = 120.0
    report_s: PositiveFloat = 0.25


class Batching(Section):
    """How calls that can wait are sent by Message Batches (`batch:` of fleet.yaml).

    Attributes:
        min_deadline_s: calls with a shorter deadline are never sent so. The API promises a batch
            within 24 h and most end within one: two leave an ordinary batch room.
        predicted_s: what a call by batch is taken to need until some were measured.
        timeout_s: the longest that one send may take: the API's 24 h and what comes around them.
        linger_s: a batch is sent when no further call came for so long, or ten times that after
            its first.
        max_requests: the most calls of a batch; the API takes 100,000.
        max_bytes: the most bytes of a batch; the API takes 256 MB.
        max_waiting: the most calls of a model that wait for their batches at once.
        poll_s: how soon a batch is first asked about; each time half as long again.
        max_poll_s: how often it is asked about at least.
        keep_s: answers whose callers died are kept so long for others that ask the same (older ones
            are forgotten when a batcher starts).
        store: file (SQLite) of what was sent, on the machine of the head node.
    """

    min_deadline_s: PositiveFloat = 7200.0
    predicted_s: PositiveFloat = 3600.0
    timeout_s: PositiveFloat = 25 * 3600.0
    linger_s: PositiveFloat = 3.0
    max_requests: Annotated[int, Field(ge=1, le=100_000)] = 100_000
    max_bytes: Annotated[int, Field(ge=1_000, le=256_000_000)] = 250_000_000
    max_waiting: PositiveInt = 100_000
    poll_s: PositiveFloat = 5.0
    max_poll_s: PositiveFloat = 60.0
    keep_s: PositiveFloat = 7 * 86400.0
    store: Path = Path("~/.local/state/agentcloud/batches.db")


class Caching(Section):
    """The response cache: equal calls are paid once (`cache:` of fleet.yaml; off without it).

    Attributes:
        ttl_s: an answer is given again for so long after it was made.
        url: where answers are kept: a database as `store:` has it, or `redis://HOST:6379/0`; null:
            where `store:` is.
        max_bytes: the most bytes of answers that a database keeps: the oldest go first. Redis is
            bounded by its own `maxmemory`.
    """

    ttl_s: PositiveFloat = 86400.0
    url: SecretStr | None = None
    max_bytes: Annotated[int, Field(ge=1_000_000)] = 1_000_000_000

    @property
    def redis_url(self) -> str | None:
        """Where answers are kept, where that is Redis."""
        url = "" if self.url is None else self.url.get_secret_value()
        return url if _scheme(url) in _REDIS else None

    @model_validator(mode="after")
    def _known_url(self) -> Self:
        if self.url is not None:
            # The URL itself is never shown: it may hold a password.
            scheme = _scheme(self.url.get_secret_value()).partition("+")[0]
            if scheme not in (*_REDIS, "sqlite", "postgresql"):
                raise ValueError(
                    "url is of no database that is known; write redis://HOST:6379/0, "
                    "postgresql+psycopg://USER@HOST/NAME or sqlite:////PATH, or leave it out"
                )
        if self.redis_url is not None and "max_bytes" in self.model_fields_set:
            raise ValueError(
                "max_bytes is of databases; set Redis' own `maxmemory`, and leave it out here"
            )
        return self


class Scaling(Section):
    """When models with bounds for `replicas` get more or fewer of them.

    One more is started when the waiting and the hosted calls that it saves are worth more than
    its price while it starts and for `keep_s` after; one is taken away when that was not so for
    all of `keep_s`.

    Attributes:
        every_s: how often the load is looked at.
        start_s: how long a start is taken to last until one was measured.
        keep_s: the least time for which a replica is paid, and looked at before one goes.
        drain_s: a replica that goes waits so long for its calls; then they are sent elsewhere.
        pending_s: a replica for which there is no room is given up after this, and tried again
            after as long.
        surge_s: a replacement that finds no room beside the old replica gets its room after this.
    """

    every_s: PositiveFloat = 2.0
    start_s: PositiveFloat = 60.0
    keep_s: PositiveFloat = 300.0
    drain_s: PositiveFloat = 600.0
    pending_s: PositiveFloat = 900.0
    surge_s: PositiveFloat = 30.0


class Alarming(Section):
    """When a change for the worse raises an alarm (`alarms:` of fleet.yaml; docs/alarms.md).

    Attributes:
        enabled: whether calls and tasks are watched.
        window_calls: a window is at least so many calls (or tasks) of one endpoint and agent,
        window_s: and lasts at least so long.
        min_ratio: times and costs: the least change that matters; 1.2 is a fifth worse. Changes of
            less than its root are never told.
        min_rate_step: errors and invalid answers: the least rise that matters, as a share of
            calls; a rate must also double.
        false_alarms: the most false alarms for each window of every series.
        webhook_url: alarms are posted there as JSON when they are raised and when they end.
        webhook_url_env: environment variable that holds the URL, on the head node, where it is a
            secret.
    """

    enabled: bool = True
    window_calls: Annotated[int, Field(ge=10, le=10_000)] = 40
    window_s: PositiveFloat = 30.0
    min_ratio: Annotated[float, Field(ge=1.02, le=10)] = 1.2
    min_rate_step: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    false_alarms: Annotated[float, Field(ge=1e-9, le=0.01)] = 1e-4
    webhook_url: SecretStr | None = None
    webhook_url_env: str | None = None

    @model_validator(mode="after")
    def _one_webhook(self) -> Self:
        if self.webhook_url is not None:
            if self.webhook_url_env is not None:
                raise ValueError("webhook_url and webhook_url_env: give one of them")
            _check_webhook(self.webhook_url, "webhook_url")
        return self

    def webhook(self, where: str = "fleet.yaml: alarms.webhook_url_env") -> SecretStr | None:
        """The webhook's URL; None: there is none.

        Args:
            where: what to name in the error.

        Raises:
            ConfigError: its variable is not set here, or holds no URL.
        """
        if self.webhook_url_env is None:
            return self.webhook_url
        url = SecretStr(os.environ.get(self.webhook_url_env, "").strip())
        if not url.get_secret_value():
            raise ConfigError(
                f"the variable {self.webhook_url_env} is not set on this node; set it before "
                f"`agentcloud up`",
                where=where,
            )
        try:
            _check_webhook(url, f"the variable {self.webhook_url_env}")
        except ValueError as error:
            raise ConfigError(str(error), where=where) from None
        return url


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _check_webhook(url: SecretStr, name: str) -> None:
    # The URL itself is never shown: it may hold a token.
    try:
        parts = urlsplit(url.get_secret_value())
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError(f"{name} holds no URL; write http://HOST/... or https://HOST/...")
