"""Alarms beside the scheduler: what counts, what fleet.yaml says, the webhook."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from agentcloud.cluster.alarm_watch import AlarmWatch, TaskFacts
from agentcloud.cluster.alarms import ALL
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.config_rules import Alarming
from agentcloud.cluster.contracts import (
    Outcome,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.webhook import Webhook
from tests.cluster.scheduling import Bed, replica
from tests.cluster.webhook_server import SECRET, webhook_server
from tests.conftest import wait_until


class Watched:
    """The real core with alarms beside it, on a fake clock."""

    def __init__(self, **alarms: Any) -> None:
        self.bed = Bed(replica(0))
        self.clock = self.bed.clock
        config = Alarming(window_calls=10, window_s=1.0, **alarms)
        self.watch = AlarmWatch(config, "t", self.clock.now, lambda: 1e9 + self.clock.now())
        self.rng = random.Random(3)
        self.calls = 0

    def call(self, ttft_s: float = 0.1, **settled: Any) -> None:
        """One call from the request to the settlement."""
        self.calls += 1
        lease = self.bed.take(f"c{self.calls}", routing=Routing(kind="agent:triage"))
        self.clock.advance(0.2)
        took_s = ttft_s * self.rng.lognormvariate(0.0, 0.3)
        told: dict[str, Any] = {
            "outcome": Outcome.OK,
            "usage": TokenUsage(100, 0, 0, 20),
            "cost_usd": Decimal(0),
            "timings": Timings(ttft_s=took_s, generation_s=1.0, total_s=took_s + 1.0),
        }
        settlement = Settlement(lease.lease_id, **(told | settled))
        ended = self.bed.core.settle(settlement)
        assert ended is not None
        self.watch.settled(ended, settlement)
        self.last = ended, settlement

    def calls_of(self, count: int, ttft_s: float = 0.1, **settled: Any) -> dict[str, Any]:
        for _ in range(count):
            self.call(ttft_s, **settled)
        self.watch.look()
        return self.watch.report(baselines=True)


def test_a_slowdown_is_reported_logged_and_posted_once_and_its_end_too() -> None:
    with webhook_server(503) as hook, capture_logs() as logs:
        watched = Watched(webhook_url=hook.url)
        assert watched.calls_of(500)["active"] == []
        began = 1e9 + watched.clock.now()
        report = watched.calls_of(80, ttft_s=0.3)
        (alarm,) = report["active"]
        assert (alarm["endpoint"], alarm["kind"], alarm["measure"]) == (
            "replica:m:0",
            "agent:triage",
            "ttft_s",
        )
        assert abs(alarm["since"] - began) < 5.0
        evidence = alarm["evidence"]
        assert evidence["baseline"] == pytest.approx(0.1, rel=0.2)
        assert evidence["observed"] == pytest.approx(0.3, rel=0.3)
        assert evidence["ratio"] == pytest.approx(3.0, rel=0.2)
        assert evidence["baseline_windows"] >= 30
        report = watched.calls_of(200)
        assert report["active"] == []
        assert [each["how_it_ended"] for each in report["recent"]] == ["back to normal"]
        assert wait_until(lambda: len(hook.bodies) == 2, 20)
    assert hook.tries == 3, "the first answer was 503"
    assert [body["event"] for body in hook.bodies] == ["raised", "ended"]
    assert hook.bodies[0]["alarm"]["id"] == hook.bodies[1]["alarm"]["id"] == alarm["id"]
    warned = [line for line in logs if line["log_level"] == "warning"]
    assert [line["event"] for line in warned] == ["alarm"]
    assert "ttft_s of replica:m:0 and agent:triage is" in warned[0]["what"]
    assert SECRET not in repr(logs) + repr(report) + repr(watched.watch.__dict__)


def test_what_is_given_up_limited_or_beaten_says_nothing_of_the_endpoint() -> None:
    watched = Watched()
    watched.calls_of(10)
    ended, settlement = watched.last
    given_up: tuple[dict[str, Any], ...] = (
        {"outcome": Outcome.CANCELLED},
        {"outcome": Outcome.UNKNOWN, "cost_usd": None},
        {"outcome": Outcome.CANCELLED, "error_kind": "timeout_error", "beaten": True},
        {"outcome": Outcome.FAILED, "error_kind": "rate_limit_error"},
    )
    for told in given_up * 20:
        watched.clock.advance(0.2)
        watched.watch.settled(ended, replace(settlement, **told))
    watched.watch.look()
    report = watched.watch.report(baselines=True)
    assert {row["windows"] for row in report["baselines"]} == {1}
    watched.calls_of(300)
    report = watched.calls_of(40, outcome=Outcome.FAILED, error_kind="invalid_request_error")
    assert [each["measure"] for each in report["active"]] == ["error_rate"]


def test_tasks_tell_costs_and_invalid_answers() -> None:
    watched = Watched()
    rng = random.Random(1)

    def tasks(count: int, usd: float, invalid: int) -> dict[str, Any]:
        for _ in range(count):
            cost = Decimal(repr(usd * rng.lognormvariate(0.0, 0.2)))
            facts = TaskFacts({"e": cost, ALL: cost}, {"e": (5, invalid)})
            watched.watch.tasks_ended("k", [facts])
            watched.clock.advance(0.5)
        watched.watch.look()
        return watched.watch.report()

    assert tasks(500, 0.01, 0)["active"] == []
    active = tasks(80, 0.015, 1)["active"]
    assert {(each["endpoint"], each["measure"]) for each in active} == {
        ("e", "cost_per_task_usd"),
        (ALL, "cost_per_task_usd"),
        ("e", "invalid_rate"),
    }


def test_switched_off_it_notes_nothing_and_forgets() -> None:
    watched = Watched()
    watched.calls_of(500)
    assert watched.calls_of(80, ttft_s=0.3)["active"]
    watched.watch.configure(Alarming(enabled=False))
    report = watched.calls_of(80, ttft_s=0.3)
    assert (report["enabled"], report["active"], report["baselines"]) == (False, [], [])


def test_a_webhook_that_fails_is_told_without_its_url() -> None:
    with webhook_server(500, 500, 302) as hook, capture_logs() as logs:
        webhook = Webhook(SecretStr(hook.url), pauses_s=(0.0, 0.0))
        webhook.send({"n": 1})
        webhook.send({"n": 2})
        assert wait_until(lambda: webhook.sent == 1, 10)
    assert hook.bodies == [{"n": 2}]
    webhook.send({"n": 3})  # nobody listens any more
    with capture_logs() as later:
        assert wait_until(lambda: webhook.lost == 2, 10)
    webhook.close()
    said = logs + later
    assert [line["why"] for line in said] == ["HTTP 302", "ConnectionError"]
    assert SECRET not in repr(said) + repr(webhook)


def _fleet(**alarms: Any) -> Alarming:
    models = {"m": {"path": "embedded:triage-small"}}
    return parse_fleet({"models": models, "alarms": alarms}).alarms


def test_fleet_yaml_s_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fleet().webhook() is None
    for url in ("hook.example", "ftp://x/y", f"//{SECRET}"):
        with pytest.raises(ConfigError, match="webhook_url holds no URL") as refused:
            _fleet(webhook_url=url)
        assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError, match="give one of them"):
        _fleet(webhook_url="https://x/y", webhook_url_env="HOOK")
    with pytest.raises(ConfigError, match="did you mean 'min_ratio'"):
        _fleet(min_ration=2)
    named = _fleet(webhook_url_env="HOOK")
    with pytest.raises(ConfigError, match="HOOK is not set on this node"):
        named.webhook()
    monkeypatch.setenv("HOOK", f"/{SECRET}")
    with pytest.raises(ConfigError, match="variable HOOK holds no URL") as refused:
        named.webhook()
    assert SECRET not in str(refused.value)
    monkeypatch.setenv("HOOK", f"https://h.example/{SECRET}")
    secret = named.webhook()
    assert secret is not None
    assert secret.get_secret_value() == f"https://h.example/{SECRET}"
    assert SECRET not in repr(named) + repr(_fleet(webhook_url=f"https://x/{SECRET}"))
