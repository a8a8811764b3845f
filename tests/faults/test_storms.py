"""What a server really receives when it is in trouble, over every layer that tries again."""

from __future__ import annotations

import asyncio

import pytest

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.errors import Overloaded
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.serving import PARAMS, serving


async def test_an_outage_is_no_storm_and_the_caller_is_told_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, ratio, allowance = 30, 0.2, 3
    async with serving(
        monkeypatch, clock=FakeClock(), retry={"ratio": ratio, "allowance": allowance}
    ) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED), count=1000)

        async def outage() -> list[object]:
            work = (served.inference.create(PARAMS) for _ in range(calls))
            return list(await asyncio.gather(*work, return_exceptions=True))

        errors = await served.with_time(outage())
        assert all(type(error) is Overloaded for error in errors), errors
        assert calls < served.sends <= (1 + ratio) * calls + allowance
        told = [error for error in errors if "not sent again" in str(error)]
        assert told
        assert "retry.ratio" in str(told[0])
        assert "\n" not in str(told[0])
        assert sum(error.sends for error in errors if isinstance(error, Overloaded)) == served.sends
