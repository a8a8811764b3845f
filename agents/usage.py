"""What a task's calls used, summed from their receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from anthropic.types import Message

from agentcloud.cluster.contracts import Receipt
from agentcloud.cluster.errors import AgentCloudError


@dataclass(slots=True)
class Usage:
    """Receipts of the calls of one task, in the order in which they were answered."""

    receipts: list[Receipt] = field(default_factory=list)
    _whole: Usage | None = field(default=None, repr=False, compare=False)

    def part(self) -> Usage:
        """An empty usage whose calls count here too: one ask's, while others run beside it."""
        return Usage(_whole=self)

    def add(self, receipt: Receipt) -> None:
        """Count one answered call."""
        self.receipts.append(receipt)
        if self._whole is not None:
            self._whole.add(receipt)

    def mark_agreement(self, call_ids: Set[str], share: float) -> None:
        """Write onto the receipts of a cascade's samples what share of them agree."""
        for index, receipt in enumerate(self.receipts):
            if receipt.call_id in call_ids:
                self.receipts[index] = replace(receipt, agreement=share)
        if self._whole is not None:
            self._whole.mark_agreement(call_ids, share)

    def mark_valid(self, message: Message, valid: bool) -> None:
        """Write onto an answer's receipt whether it satisfied its output's schema."""
        call_id = getattr(getattr(message, "agentcloud", None), "call_id", None)
        for index in range(len(self.receipts) - 1, -1, -1):
            if self.receipts[index].call_id == call_id:
                self.receipts[index] = replace(self.receipts[index], valid=valid)
                break
        if self._whole is not None:
            self._whole.mark_valid(message, valid)

    @property
    def calls(self) -> int:
        """Answered calls."""
        return len(self.receipts)

    @property
    def sends(self) -> int:
        """Requests sent for them, transport retries included."""
        return sum(receipt.attempts for receipt in self.receipts)

    @property
    def input_tokens(self) -> int:
        """Tokens of all prompts, cached or not."""
        return sum(receipt.usage.prompt_tokens for receipt in self.receipts)

    @property
    def output_tokens(self) -> int:
        """Tokens generated."""
        return sum(receipt.usage.output_tokens for receipt in self.receipts)

    @property
    def cost_usd(self) -> Decimal | None:
        """What the calls cost; None when the cost of any of them is unknown."""
        costs = [receipt.cost_usd for receipt in self.receipts]
        known = [cost for cost in costs if cost is not None]
        return None if len(known) < len(costs) else sum(known, Decimal(0))

    @property
    def known_cost_usd(self) -> Decimal:
        """The part of the cost that is known: the least that was spent."""
        costs = (receipt.cost_usd for receipt in self.receipts)
        return sum((cost for cost in costs if cost is not None), Decimal(0))

    @property
    def endpoints(self) -> dict[str, int]:
        """Calls by the endpoint that answered, the first used first."""
        return dict(Counter(receipt.endpoint for receipt in self.receipts))

    @contextmanager
    def told_by_errors(self) -> Iterator[None]:
        """Write these sums onto an error that ends what they are counted for."""
        try:
            yield
        except AgentCloudError as error:
            error.spent = self.to_dict()
            raise

    def since(self, calls: int) -> Usage:
        """The usage after the first `calls` calls."""
        return Usage(self.receipts[calls:])

    def to_dict(self) -> dict[str, Any]:
        """The sums as JSON-able data; money as a decimal string."""
        cost_usd = self.cost_usd
        return {
            "calls": self.calls,
            "sends": self.sends,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": None if cost_usd is None else str(cost_usd),
            "known_cost_usd": str(self.known_cost_usd),
            "endpoints": self.endpoints,
        }
