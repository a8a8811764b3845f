"""Alarms beside the scheduler: fed with what it settles, told to logs, metrics and a webhook.

The scheduler only notes what was settled; a thread of its own tests and tells, once a second.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import structlog

from agentcloud.cluster.alarm import Alarm
from agentcloud.cluster.alarms import Alarms, Settings
from agentcloud.cluster.baselines import Effect
from agentcloud.cluster.config_rules import Alarming
from agentcloud.cluster.contracts import Outcome, Settlement
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.leases import Granted
from agentcloud.cluster.metrics import AlarmMetrics
from agentcloud.cluster.retry import RATE_LIMIT_KIND
from agentcloud.cluster.webhook import Webhook

LOOK_EVERY_S: Final = 1.0
#: Noted and not yet looked at; of more, the oldest are left out.
_MAX_NOTED: Final = 50_000
#: Time per token of shorter answers is mostly that of the wire.
_LEAST_TOKENS: Final = 4

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a task that ended for good says.

    Attributes:
        costs_usd: endpoint (`alarms.ALL`: all together) -> known cost of its calls.
        checked: endpoint -> answers held against an output's schema, those that failed.
    """

    costs_usd: Mapping[str, Decimal] = field(default_factory=dict)
    checked: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class AlarmWatch:
    """Notes, tests and tells.

    Args:
        config: `alarms:` of fleet.yaml.
        name: of the scheduler's run, part of alarms' ids.
        now: the scheduler's clock, seconds.
        wall: seconds since 1970, for people.
    """

    def __init__(
        self, config: Alarming, name: str, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._now, self._wall = now, wall
        self._name = name
        self._lock = threading.Lock()
        self._calls: deque[tuple[float, Granted, Settlement]] = deque(maxlen=_MAX_NOTED)
        self._tasks: deque[tuple[float, str, TaskFacts]] = deque(maxlen=_MAX_NOTED)
        self._metrics = AlarmMetrics()
        self._webhook: Webhook | None = None
        self._config = config
        self._alarms = Alarms(_settings(config), name)
        self._webhook = _webhook(config)

    def configure(self, config: Alarming) -> None:
        """Take another `alarms:`; baselines and alarms stay, unless it is switched off."""
        if config == self._config:
            return
        with self._lock:
            if self._webhook is not None:
                self._webhook.close()
            self._config = config
            self._webhook = _webhook(config)
            if config.enabled:
                self._alarms.settings = _settings(config)
            else:
                self._alarms = Alarms(_settings(config), self._name)

    def settled(self, lease: Granted, settlement: Settlement) -> None:
        """A lease ended."""
        if self._config.enabled:
            self._calls.append((self._now(), lease, settlement))

    def tasks_ended(self, kind: str, facts: list[TaskFacts]) -> None:
        """Tasks of one kind ended for good."""
        if self._config.enabled:
            now_s = self._now()
            self._tasks.extend((now_s, kind, each) for each in facts)

    def start(self) -> None:
        """Look once a second, for as long as the process lives."""

        def run() -> None:
            pause = threading.Event()
            while not pause.wait(LOOK_EVERY_S):
                try:
                    self.look()
                except Exception:
                    log.exception("alarms were not looked at")

        threading.Thread(target=run, name="scheduler-alarms", daemon=True).start()

    def look(self) -> None:
        """Test what was noted, tell what is new."""
        with self._lock:
            while self._calls:
                self._take(*self._calls.popleft())
            while self._tasks:
                at_s, kind, facts = self._tasks.popleft()
                self._alarms.task_ended(kind, facts.costs_usd, facts.checked, at_s)
            self._alarms.end_silent(self._now())
            news = [(alarm, self._told(alarm)) for alarm in self._alarms.news()]
            active = frozenset(alarm.key for alarm in self._alarms.active)
            webhook = self._webhook
        self._metrics.active(active)
        for alarm, told in news:
            if alarm.ended is None:
                self._metrics.raised(alarm.key)
                log.warning("alarm", what=str(alarm), **told)
            else:
                log.info("alarm ended", what=str(alarm), **told)
            if webhook is not None:
                event = "raised" if alarm.ended is None else "ended"
                text = f"agentcloud: {alarm}" + (f" ({alarm.ended})" if alarm.ended else "")
                webhook.send({"event": event, "text": text, "alarm": told})

    def report(self, *, baselines: bool = False) -> dict[str, Any]:
        """What is active, what was, and (if asked for) every baseline; JSON-able."""
        with self._lock:
            alarms = self._alarms
            report: dict[str, Any] = {
                "enabled": self._config.enabled,
                "active": [self._told(alarm) for alarm in alarms.active],
                "recent": [self._told(alarm) for alarm in reversed(alarms.recent)],
                "windows": alarms.windows,
                "webhook": None
                if self._webhook is None
                else {
                    "host": self._webhook.host,
                    "sent": self._webhook.sent,
                    "lost": self._webhook.lost,
                },
            }
            if baselines:
                report["baselines"] = [
                    {
                        "endpoint": key.endpoint,
                        "kind": key.kind,
                        "measure": str(key.measure),
                        "windows": windows,
                        "baseline": None if shown is None else shown.baseline,
                        "spread": None if shown is None else shown.spread,
                    }
                    for key, shown, windows in alarms.baselines()
                ]
        return report

    def _told(self, alarm: Alarm) -> dict[str, Any]:
        return alarm.as_dict(self._now(), self._wall())

    def _take(self, at_s: float, lease: Granted, settlement: Settlement) -> None:
        # Three ends: answered; failed by the endpoint; given up, or told to slow down, which say
        # nothing of it.
        answered = settlement.outcome is Outcome.OK
        kind = settlement.error_kind
        failed = kind is not None and kind != RATE_LIMIT_KIND and not settlement.beaten
        if not answered and not failed:
            return
        timings, usage = settlement.timings, settlement.usage
        token_s = None
        if timings.generation_s is not None and usage and usage.output_tokens >= _LEAST_TOKENS:
            token_s = timings.generation_s / (usage.output_tokens - 1)
        self._alarms.called(
            lease.state.spec.name,
            lease.kind,
            at_s,
            failed=not answered,
            ttft_s=timings.ttft_s if answered else None,
            token_s=token_s if answered else None,
            running=lease.running,
            prompt_tokens=lease.input_tokens + int(lease.ahead[0]),
        )


def _settings(config: Alarming) -> Settings:
    effect = Effect(config.min_ratio, rate_step=config.min_rate_step)
    return Settings(config.window_calls, config.window_s, effect, config.false_alarms)


def _webhook(config: Alarming) -> Webhook | None:
    try:
        url = config.webhook()
    except ConfigError as error:  # the fleet runs without it; `agentcloud doctor` fails on it
        log.warning("alarms go to no webhook", why=str(error))
        return None
    return None if url is None or not config.enabled else Webhook(url)
