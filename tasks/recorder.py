"""The steps of one task: answers that are recorded are given again, and new ones recorded."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace
from typing import Any

import structlog

from agentcloud.cluster.contracts import EndpointKind, Receipt
from agentcloud.cluster.errors import AnswerUnknown
from agentcloud.cluster.fault_points import reached
from agentcloud.cluster.ports import Step
from agentcloud.tasks.ledger_client import LedgerPort
from agentcloud.tasks.ledger_wire import Recalled, StepRow
from agentcloud.tasks.spec import OnUnknown
from agentcloud.tasks.step_ids import Asked, asked, step_id, task_prefix

log = structlog.get_logger()


class TaskRecorder:
    """A `StepRecorder` over the ledger; one attempt at a task has its own.

    Args:
        ledger: writes and recalls.
        job_id: the job.
        task_id: the task.
        on_unknown: what becomes of a step whose answer an earlier attempt may have paid for and
            lost.
    """

    def __init__(
        self, ledger: LedgerPort, job_id: str, task_id: str, on_unknown: OnUnknown
    ) -> None:
        self._ledger = ledger
        self._task_id = task_id
        self._prefix = task_prefix(job_id, task_id)
        self._on_unknown = on_unknown
        self._recalled = Recalled()
        #: Steps that are under way: kind, name and what is asked.
        self._open: dict[str, tuple[str, str, Asked]] = {}
        #: By what is asked: the next occurrence number, and those that failed steps have left.
        self._next: Counter[str] = Counter()
        self._left: dict[str, list[int]] = {}
        self.reused = 0
        self.resent = 0

    def __repr__(self) -> str:
        return f"<TaskRecorder {self._task_id}, {self.reused} reused, {self.resent} resent>"

    async def recall(self, *, was_lost: bool) -> None:
        """Fetch what earlier attempts at the task left.

        Args:
            was_lost: one ended with its worker. Where none did, every call was answered or failed.
        """
        recalled = await self._ledger.recall(self._task_id)
        self._recalled = recalled if was_lost else replace(recalled, sent=frozenset())

    async def begin(self, kind: str, name: str, content: Any) -> Step:
        """As `StepRecorder.begin`.

        Raises:
            AnswerUnknown: it may have been paid for and answered before, under `fail`.
        """
        what = asked(kind, name, content)
        left = self._left.get(what.key)
        number = left[0] if left else self._next[what.key]
        id_ = step_id(self._prefix, what.key, number)
        recorded = self._recalled.answers.get(id_)
        if recorded is not None:
            self.reused += 1
        elif id_ in self._recalled.sent:
            if self._on_unknown is OnUnknown.FAIL:
                raise AnswerUnknown(
                    f"a paid call of {name} was under way when its worker died, and its answer is "
                    f"lost; it stays charged; --on-unknown resend would send it again"
                )
            self.resent += 1
            log.warning("a paid call whose answer was lost is sent again", model=name, step=id_)
        if recorded is None:
            self._open[id_] = kind, name, what
        if left:
            heapq.heappop(left)
        else:
            self._next[what.key] += 1
        return Step(id_, what.key, number, recorded)

    async def done(self, step: Step, answer: bytes, receipt: Receipt | None = None) -> None:
        """As `StepRecorder.done`.

        Raises:
            RunReplaced: a later run of the job has begun.
        """
        kind, name, what = self._open.pop(step.id)
        paid = receipt is not None and receipt.kind is EndpointKind.HOSTED
        usd = receipt.lease_usd if receipt is not None else None
        row = StepRow(
            step.id,
            self._task_id,
            kind,
            name[:256],
            what.settings,
            what.history,
            answer,
            receipt.lease_id if receipt is not None and paid else None,
            str(usd) if paid and usd is not None else None,
        )
        await self._ledger.put(steps=(row,), contents=what.contents)
        reached("recorded")

    def failed(self, step: Step) -> None:
        """As `StepRecorder.failed`."""
        self._open.pop(step.id, None)
        heapq.heappush(self._left.setdefault(step.key, []), step.occurrence)
