"""What a sandbox remembers of the calls it got, for tests to assert on."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class CallRecord:
    """One call.

    Attributes:
        number: counted from 1 since the start or the last reset.
        at_s: Unix time of arrival.
        path: `/v1/messages` or `/v1/messages/count_tokens`.
        account: digest of the key.
        request_id: as answered.
        body_sha256: of the raw body.
        headers: those that concern us: retry count, timeout, idempotency.
        model: the model asked for, "" if the body names none.
        stream: whether a stream was asked for.
        fault: the fault that struck.
        status: HTTP status; None if none was sent (cut, hanging or cancelled before headers).
        outcome: `open`, `ok`, an error's type, `cut`, `malformed` or `cancelled` (by the client).
        usage: as billed; empty for calls that cost nothing.
        remaining: what was left of each limit after the call was let in.
    """

    number: int
    at_s: float
    path: str
    account: str
    request_id: str
    body_sha256: str
    headers: dict[str, str] = field(default_factory=dict)
    model: str = ""
    stream: bool = False
    fault: str | None = None
    status: int | None = None
    outcome: str = "open"
    usage: dict[str, Any] = field(default_factory=dict)
    remaining: dict[str, int | None] = field(default_factory=dict)


class CallLog:
    """The last calls, and totals over all of them since the last reset."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.reset()

    def __repr__(self) -> str:
        return f"<CallLog {self.count} calls, {self.in_flight} in flight>"

    def reset(self) -> None:
        """Forget the calls; those in flight are not counted any more."""
        self.calls: deque[CallRecord] = deque(maxlen=self._keep)
        self.count = 0
        self.max_in_flight = 0
        self._open: set[str] = set()
        self._outcomes: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Calls not answered yet."""
        return len(self._open)

    def open(self, record: CallRecord) -> None:
        """A call arrived; it gets its number."""
        self.count += 1
        record.number = self.count
        self.calls.append(record)
        self._open.add(record.request_id)
        self.max_in_flight = max(self.max_in_flight, len(self._open))

    def close(self, record: CallRecord) -> None:
        """A call is over."""
        if record.request_id in self._open:
            self._open.remove(record.request_id)
            self._outcomes[record.outcome] += 1
            self._statuses[str(record.status)] += 1

    def as_dict(self, last: int | None = None) -> dict[str, Any]:
        """The totals and the `last` calls (None: all that are remembered), JSON-able."""
        calls = list(self.calls)
        if last is not None:
            calls = calls[max(0, len(calls) - last) :]
        return {
            "count": self.count,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "outcomes": dict(self._outcomes),
            "statuses": dict(self._statuses),
            "calls": [asdict(record) for record in calls],
        }
