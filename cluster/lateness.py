"""Pure: calls that cannot make their deadline are told so at once, with the reason."""

from __future__ import annotations

from typing import Final

from agentcloud.cluster.errors import CallTimeout
from agentcloud.cluster.waiting import Waiter
from agentcloud.cluster.weighing import Choice

#: Refused only where even this share of the fastest prediction would be too late: half of all
#: predictions are too high.
_MARGIN: Final = 0.67
#: Answered calls of a class from which its predictions are believed.
_LEAST_SAMPLES: Final = 20
#: Every so many calls that seem too late are tried nevertheless: a prediction that is too high
#: would otherwise refuse all that could mend it.
_TRY_EVERY: Final = 20


class Lateness:
    """Judges calls with deadlines; counts those that it lets through to learn from."""

    def __init__(self) -> None:
        self._hopeless = 0

    def judge(self, waiter: Waiter, choice: Choice, now_s: float) -> CallTimeout | None:
        """The error for a call that nothing can answer in time; None: it may still be.

        Args:
            waiter: the call; it has a deadline.
            choice: all its options, weighed.
            now_s: now.
        """
        assert waiter.deadline_s is not None
        left_s = waiter.deadline_s - now_s
        fastest = choice.weighed[0]
        for each in choice.weighed:
            predictor = each.option.cls.predictor
            # Where no replica runs, somebody has to wait for one to be started.
            if predictor.per_token.samples < _LEAST_SAMPLES or each.option.cls.is_resting:
                return None
            if each.wait_s + each.service_s < fastest.wait_s + fastest.service_s:
                fastest = each
        total_s = fastest.wait_s + fastest.service_s
        if total_s * _MARGIN <= left_s:
            return None
        self._hopeless += 1
        if self._hopeless % _TRY_EVERY == 0:
            return None
        return CallTimeout(
            f"it cannot be answered within the {max(0.0, left_s):.3g} s that its deadline leaves: "
            f"the fastest of {len(choice.weighed)} able, {fastest.name}, would take "
            f"{total_s:.3g} s ({fastest.wait_s:.3g} s of it waiting); give more time or add "
            f"capacity",
            timeout_s=left_s,
        )

    def __repr__(self) -> str:
        return f"<Lateness {self._hopeless} hopeless>"
