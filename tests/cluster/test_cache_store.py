"""Where answers are kept: real SQLite, PostgreSQL and Redis."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from agentcloud.cluster.cache_redis import RedisAnswers, open_redis_answers
from agentcloud.cluster.cache_store import TRIM_EVERY_S, AnswersLost, SqlAnswers, open_sql_answers
from agentcloud.cluster.cache_wire import Entry
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.config_rules import Caching
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sql import open_database
from tests.conftest import wait_until
from tests.redis_server import redis_server

TTL_S = 1000.0
NOW_S = 1_800_000_000.0


class Wall:
    """A wall clock that the test sets."""

    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def answers(database: str, wall: Wall) -> Iterator[SqlAnswers]:
    engine = open_database(database, file="responses.db")
    answers = SqlAnswers(engine, ttl_s=TTL_S, max_bytes=10_000, unix_s=wall)
    yield answers
    answers.close()


def entry(size_bytes: int = 10, made_unix_s: float = NOW_S, usd: str | None = "0.25") -> Entry:
    return Entry(made_unix_s, None if usd is None else Decimal(usd), b"x" * size_bytes)


def test_what_was_written_is_read_and_a_newer_answer_takes_its_place(answers: SqlAnswers) -> None:
    answers.write({"a": entry(), "b": entry(usd=None)})
    assert answers.read(["a", "b", "c"]) == {"a": entry(), "b": entry(usd=None)}
    answers.write({"a": entry(20, NOW_S + 1)})
    assert answers.read(["a"]) == {"a": entry(20, NOW_S + 1)}
    assert answers.held() == (2, 30)


def test_more_keys_than_a_statement_takes(answers: SqlAnswers) -> None:
    entries = {f"{number:064}": entry(1) for number in range(1200)}
    answers.write(entries)
    assert answers.read([*entries, "none"]) == entries


def test_what_is_too_old_is_removed_also_where_nothing_more_is_written(
    answers: SqlAnswers, wall: Wall
) -> None:
    answers.write({"old": entry(made_unix_s=NOW_S - TTL_S + 1), "new": entry()})
    answers.write({})
    assert answers.held() == (2, 20)
    wall.now_s += TRIM_EVERY_S
    answers.write({})
    assert answers.held() == (1, 10)
    assert list(answers.read(["old", "new"])) == ["new"]


def test_the_oldest_go_where_there_is_too_much(answers: SqlAnswers) -> None:
    answers.write({str(number): entry(1000, NOW_S + number) for number in range(10)})
    assert answers.held() == (10, 10_000)
    answers.write({"10": entry(1000, NOW_S + 10)})
    assert sorted(answers.read([str(n) for n in range(11)]), key=int) == [
        str(number) for number in range(2, 11)
    ]
    answers.write({"huge": entry(50_000, NOW_S + 11)})
    assert answers.held() == (0, 0)


def test_a_database_that_goes_wrong_is_told_in_one_way(answers: SqlAnswers) -> None:
    with answers._engine.begin() as connection:
        connection.execute(text("DROP TABLE responses"))
    with pytest.raises(AnswersLost, match="responses"):
        answers.read(["a"])
    with pytest.raises(AnswersLost, match="responses"):
        answers.write({"a": entry()})


def test_answers_have_a_file_of_their_own_beside_the_store(database: str) -> None:
    opened = open_sql_answers(Caching(), database)
    opened.write({"a": entry()})
    opened.close()
    again = open_sql_answers(Caching(), database)
    assert again.held() == (1, 10)
    again.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[RedisAnswers]:
    answers = open_redis_answers(redis_url, ttl_s=TTL_S)
    yield answers
    answers.close()


def test_redis_keeps_them_until_their_end(redis: RedisAnswers, redis_url: str) -> None:
    key, soon = uuid.uuid4().hex, uuid.uuid4().hex
    redis.write({key: entry()})
    redis.write({})
    assert redis.read([key, "none"]) == {key: entry()}
    assert redis.read([]) == {}
    assert 0 < int(redis._client.pttl("agentcloud:response:" + key)) <= TTL_S * 1000
    short = open_redis_answers(redis_url, ttl_s=0.05)
    short.write({soon: entry(usd=None, made_unix_s=time.time())})
    assert wait_until(lambda: short.read([soon]) == {}, 10)
    short.close()


def test_a_redis_that_is_gone_is_told_in_one_way(redis_url: str) -> None:
    with redis_server() as url:
        answers = open_redis_answers(url, ttl_s=TTL_S)
        answers.write({"a": entry()})
    with pytest.raises(AnswersLost):
        answers.read(["a"])
    with pytest.raises(AnswersLost):
        answers.write({"a": entry()})
    answers.close()


def test_no_redis_is_one_line_without_its_password() -> None:
    with pytest.raises(
        ConfigError, match=r"fleet.yaml: cache.url: Redis at localhost .*start it"
    ) as e:
        open_redis_answers("redis://:hush@localhost:1/0", ttl_s=1)
    assert "hush" not in str(e.value)
    assert "\n" not in str(e.value)


def fleet(**cache: Any) -> FleetConfig:
    return parse_fleet({"models": {"m": {"path": "/m"}}, "cache": cache})


@pytest.mark.parametrize(
    ("cache", "match"),
    [
        ({"ttl": 5}, "unknown key 'cache.ttl'; did you mean 'ttl_s'"),
        ({"ttl_s": 0}, "cache.ttl_s: input should be greater than 0"),
        ({"url": "mysql://u:hush@h/d"}, "cache: url is of no database that is known"),
        ({"url": "redis://:hush@h", "max_bytes": 5_000_000}, "cache: max_bytes is of databases"),
        ({"max_bytes": 10}, "cache.max_bytes: input should be greater than or equal to 1000000"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(cache: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        fleet(**cache)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_none_unless_it_is_written() -> None:
    assert parse_fleet({"models": {"m": {"path": "/m"}}}).cache is None
    config = fleet().cache
    assert config is not None
    assert (config.ttl_s, config.redis_url) == (86400, None)
    redis = fleet(url="redis://:hush@h/0").cache
    assert redis is not None
    assert redis.redis_url == "redis://:hush@h/0"
    assert "hush" not in repr(redis)


def test_a_database_of_its_own_that_cannot_be_used_names_its_key() -> None:
    caching = Caching.model_validate({"url": "sqlite:////proc/none/x.db"})
    with pytest.raises(ConfigError, match=r"^fleet.yaml: cache.url: "):
        open_sql_answers(caching, None)
