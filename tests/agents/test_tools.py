"""`@tool`: schemas, validation, threads, timeouts, results."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from agentcloud.agents import tool
from agentcloud.cluster.errors import AgentError, BudgetExceeded, ToolFailed


class Place(BaseModel):
    city: str
    country: str = "FR"


@tool
def weather(
    place: Place,
    unit: Literal["C", "F"] = "C",
    days: Annotated[int, Field(ge=1, le=7, description="how far ahead")] = 1,
    json: bool = False,
) -> dict[str, Any]:
    """Tell the weather.

    Only for places on Earth.

    Args:
        place: where to look,
            in words.
        unit: of the temperature.
        days: not used, the annotation says it.
        json: a name that a pydantic model could not have.

    Returns:
        The forecast.
    """
    return {"city": place.city, "unit": unit, "days": days, "thread": threading.get_ident()}


def test_schema_comes_from_signature_and_docstring() -> None:
    param = weather.to_param()
    assert param["name"] == "weather"
    assert param["description"] == "Tell the weather.\n\nOnly for places on Earth."
    schema = param["input_schema"]
    assert schema["required"] == ["place"]
    assert schema["additionalProperties"] is False
    told = {name: part["description"] for name, part in schema["properties"].items()}
    assert told == {
        "place": "where to look,\nin words.",
        "unit": "of the temperature.",
        "days": "how far ahead",
        "json": "a name that a pydantic model could not have.",
    }
    assert schema["properties"]["days"]["maximum"] == 7
    assert "strict" not in param


async def test_sync_functions_run_in_a_thread_with_validated_arguments() -> None:
    import json

    content = await weather.run({"place": {"city": "Nice"}, "days": 2})
    assert isinstance(content, str)
    result = json.loads(content)
    assert result.pop("thread") != threading.get_ident()
    assert result == {"city": "Nice", "unit": "C", "days": 2}


def test_calling_a_tool_is_calling_the_function() -> None:
    assert weather(Place(city="Nice"), days=100)["days"] == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "place: Field required"),
        ({"place": {"city": "x"}, "days": 9}, "days: Input should be less than or equal to 7"),
        ({"place": {"city": "x"}, "mood": 1}, "mood: Extra inputs"),
    ],
)
async def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolFailed, match=f"wrong arguments for weather: {words}") as caught:
        await weather.run(arguments)
    assert caught.value.tool == "weather"


async def test_what_it_raises_is_a_failure_with_its_cause() -> None:
    @tool
    async def breaks() -> None:
        """Break."""
        Place.model_validate({})

    with pytest.raises(ToolFailed, match="breaks failed: ValidationError") as caught:
        await breaks.run({})
    assert isinstance(caught.value.__cause__, ValidationError)


async def test_our_own_errors_are_not_wrapped() -> None:
    @tool
    async def spends() -> None:
        """Spend."""
        raise BudgetExceeded("job:j", used_usd=Decimal(1), limit_usd=Decimal(1))

    with pytest.raises(BudgetExceeded):
        await spends.run({})


async def test_timeout_is_told_from_the_tool_s_own() -> None:
    @tool(timeout_s=0)
    async def slow() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    @tool
    async def own() -> None:
        """Time out by itself."""
        raise TimeoutError("upstream")

    with pytest.raises(ToolFailed, match="slow took longer than 0 s"):
        await slow.run({})
    with pytest.raises(ToolFailed, match="own failed: TimeoutError: upstream"):
        await own.run({})


async def test_results() -> None:
    @dataclass
    class Point:
        x: int

    def returning(value: Any) -> Any:
        @tool
        async def give() -> Any:
            """Give it."""
            return value

        return give.run({})

    block = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert await returning("plain") == "plain"
    assert await returning([block]) == [block]
    assert await returning([1, "a"]) == '[1,"a"]'
    assert await returning([]) == "[]"
    assert await returning(None) == "null"
    assert await returning(Place(city="Nice")) == '{"city":"Nice","country":"FR"}'
    assert await returning(Point(1)) == '{"x":1}'
    with pytest.raises(ToolFailed, match="give returned object, which is no JSON"):
        await returning(object())


def test_strict_keeps_to_what_endpoints_take() -> None:
    @tool(strict=True, name="pick", description="Pick one.")
    def choose(count: Annotated[int, Field(le=3)], note: str | None = None) -> None: ...

    param = choose.to_param()
    assert (param["name"], param["description"], param["strict"]) == ("pick", "Pick one.", True)
    assert "maximum" not in param["input_schema"]["properties"]["count"]


def test_unusable_functions_are_one_line() -> None:
    def undescribed(a: int) -> None: ...
    def untyped(a) -> None:  # type: ignore[no-untyped-def]  # the mistake under test
        """Do."""

    def starred(*a: int) -> None:
        """Do."""

    class Local(BaseModel):
        a: int

    def local(a: Local) -> None:
        """Do."""

    def odd(a: threading.Thread) -> None:
        """Do."""

    with pytest.raises(AgentError, match="retries cannot be negative: -1"):
        tool(retries=-1)(weather)
    for function, words in (
        (undescribed, "has no docstring"),
        (untyped, "argument a has no type"),
        (starred, "argument a must be a plain named argument"),
        (local, "annotations must name types of the module's top level"),
        (odd, "Thread"),
    ):
        with pytest.raises(AgentError, match=words) as caught:
            tool(function)
        assert "\n" not in str(caught.value)
