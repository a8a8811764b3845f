"""Pure: one call over all its sends: what to ask for, what to settle, what the receipt says.

inference.py does what this decides; no I/O and no waiting here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from anthropic.types import Usage

from agentcloud.cluster.catalog import Catalog
from agentcloud.cluster.config_rules import Retry
from agentcloud.cluster.contracts import (
    Answer,
    Call,
    EndpointKind,
    Feature,
    Lease,
    LeaseRequest,
    Outcome,
    Params,
    Receipt,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.errors import (
    AgentCloudError,
    BackendError,
    CallTimeout,
    RetriesSpent,
)
from agentcloud.cluster.gpu_share import GpuShare
from agentcloud.cluster.prefix_chunks import Chunks, prefix_chunks
from agentcloud.cluster.prices import gpu_seconds_usd
from agentcloud.cluster.retry import Decision, Elsewhere, Fail, decide, is_paced, is_unusable
from agentcloud.cluster.sizing import estimated_input_tokens, needs_of

_ZERO = Decimal(0)


@dataclass(slots=True)
class Send:
    """One send under its lease.

    Attributes:
        sent_s: when it was sent, on the caller's clock.
        share: its endpoint's meter of GPU time; None for hosted endpoints.
        mark: where the meter stood.
    """

    lease: Lease
    call: Call
    sent_s: float
    share: GpuShare | None
    mark: float


class Attempts:
    """One call: its sends, what they cost, how long they waited."""

    def __init__(
        self,
        call_id: str,
        model: str,
        params: Params,
        routing: Routing,
        *,
        retry: Retry,
        catalog: Catalog,
        rng: random.Random,
        now_s: float,
        max_output_tokens: int | None = None,
        stream: bool = False,
    ) -> None:
        """Begin a call.

        Args:
            call_id: unique; later sends append their number to it.
            model: model or tier, aliases resolved.
            params: as given by the caller.
            routing: as given by the caller.
            retry: fleet.yaml's `retry:`.
            catalog: prices.
            rng: jitter of backoffs.
            now_s: the clock at the caller's request.
            max_output_tokens: in place of the request's `max_tokens`.
            stream: the answer is wanted as it comes.
        """
        self._call_id = call_id
        self._retry = retry
        self._catalog = catalog
        self._rng = rng
        self._began_s = now_s
        self._extra_sends = routing.extra_sends
        routing = replace(routing, extra_sends=None)
        self._routing = routing
        input_tokens = estimated_input_tokens(params)
        # Counting tokens leaves nothing in a cache.
        counts = max_output_tokens is not None
        chunks = Chunks() if counts else prefix_chunks(params, input_tokens)
        self._request = LeaseRequest(
            call_id=call_id,
            model=model,
            input_tokens=input_tokens,
            max_output_tokens=max_output_tokens or params["max_tokens"],
            needs=needs_of(params) | ({Feature.MEAN_LOGPROB} if routing.mean_logprob else set()),
            routing=routing,
            stream=stream,
            prefix=chunks.hashes,
            prefix_tokens=chunks.tokens,
        )
        self._queue_s = 0.0
        self._spent_usd = _ZERO
        self._unknown_usd = _ZERO
        self._spent_unknown = False
        self._hedged = False
        self._before: TokenUsage | None = None
        self._continued_from: str | None = None
        self._rest_until_s: dict[str, float] = {}
        self._last: BackendError | None = None
        self.attempt = 0

    def __repr__(self) -> str:
        return f"Attempts({self._call_id}, attempt={self.attempt}, spent={self._spent_usd})"

    @property
    def mean_logprob(self) -> bool:
        """Whether the answer's log-probability is asked for; only endpoints that tell it serve."""
        return self._routing.mean_logprob

    @property
    def input_tokens(self) -> int:
        """The prompt, estimated from above."""
        return self._request.input_tokens

    def left_s(self, now_s: float) -> float | None:
        """Seconds to the deadline; None without one.

        Raises:
            CallTimeout: it has passed.
        """
        deadline_s = self._routing.deadline_s
        if deadline_s is None:
            return None
        left_s = self._began_s + deadline_s - now_s
        if left_s <= 0:
            raise CallTimeout(
                f"the deadline of {deadline_s:g} s passed before an answer; give more time, or "
                f"policy: latency",
                timeout_s=deadline_s,
            )
        return left_s

    def next_request(self, now_s: float) -> LeaseRequest:
        """The request for the next send's lease.

        Raises:
            CallTimeout: the deadline has passed.
        """
        left_s = self.left_s(now_s)
        self.attempt += 1
        if self.attempt == 1:
            return self._request
        return replace(
            self._request,
            call_id=f"{self._call_id}.{self.attempt}",
            attempt=self.attempt,
            avoid=frozenset(self._rest_until_s),
            paced=self._last is not None and is_paced(self._last),
            routing=replace(self._routing, deadline_s=left_s),
        )

    def continues(self, params: Params, broken: Send, usage: Usage | None) -> None:
        """From now on the rest of a broken stream is asked for: its next part, `params`.

        Args:
            params: the request with the text so far as its last turn.
            broken: the send that broke.
            usage: its usage, as far as it was told.
        """
        self._request = replace(
            self._request,
            input_tokens=estimated_input_tokens(params),
            max_output_tokens=params["max_tokens"],
            needs=self._request.needs | needs_of(params),
        )
        self._continued_from = broken.lease.endpoint.name
        if usage is not None:
            self._before = _both(self._before, token_usage(usage))

    def hedge_request(self, slow: str, now_s: float) -> LeaseRequest | None:
        """The request for a second send beside the one that is slow at `slow`; None: no more."""
        allowed = self._routing.max_attempts or self._retry.max_attempts
        if self._hedged or self.attempt >= allowed:
            return None
        return replace(
            self._request,
            call_id=f"{self._call_id}.{self.attempt + 1}h",
            attempt=self.attempt + 1,
            avoid=frozenset({slow, *self._rest_until_s}),
            hedge=True,
            routing=replace(self._routing, deadline_s=self.left_s(now_s), fallback=False),
        )

    def begin_hedge(self) -> bool:
        """Count the second send, out of the task's extra ones; False when none is left."""
        if self._extra_sends is not None and not self._extra_sends.take():
            return False
        self.attempt += 1
        self._hedged = True
        return True

    def given_up(self, why: RetriesSpent) -> AgentCloudError:
        """The error for the caller where the scheduler grants no further send."""
        error = self._last
        if error is None:
            return why
        # Counted already, though it was never sent.
        error.sends = self.attempt - 1
        error.message = f"{error.message}; not sent again: {why.message}"
        error.args = (error.message,)
        return error

    def rest_s(self, lease: Lease, now_s: float) -> float:
        """Seconds that a leased endpoint must still rest after failing this very call."""
        return max(0.0, self._rest_until_s.get(lease.endpoint.name, now_s) - now_s)

    def leased(self, lease: Lease, params: Params, asked_s: float, now_s: float) -> Call:
        """What to send under the lease that was asked for at `asked_s`."""
        self._queue_s += now_s - asked_s
        timeout_s = self._routing.timeout_s or lease.endpoint.timeout_s or self._retry.timeout_s
        left_s = self.left_s(now_s)
        request, is_local = self._request, lease.endpoint.kind is EndpointKind.LOCAL
        return Call(
            call_id=lease.call_id,
            params=params,
            timeout_s=timeout_s if left_s is None else min(timeout_s, left_s),
            prefix=request.prefix if is_local else (),
            prefix_shares=tuple(tokens / request.input_tokens for tokens in request.prefix_tokens)
            if is_local
            else (),
        )

    def succeeded(
        self,
        send: Send,
        model: str,
        usage: Usage,
        timings: Timings,
        headers: Mapping[str, str],
        now_s: float,
    ) -> tuple[Settlement, Receipt]:
        """Settle an answered send and write the call's receipt."""
        lease = send.lease
        endpoint = lease.endpoint
        share_s = _share_s(send, now_s)
        served_by = self._served_by(model, send)
        if endpoint.kind is EndpointKind.HOSTED:
            # Where it is no batch of ours, the usage tells.
            batch = endpoint.batch or None
            cost_usd = self._catalog.cost_usd(served_by, usage, batch=batch)
            saved_usd = self._catalog.saved_usd(served_by, usage, batch=batch)
        else:
            saved_usd = None
            cost_usd = gpu_seconds_usd(share_s, 1, endpoint.usd_per_hour)
        tokens = token_usage(usage)
        full = replace(timings, queue_s=self._queue_s, total_s=now_s - self._began_s)
        receipt = Receipt(
            call_id=self._call_id,
            endpoint=endpoint.name,
            model=served_by if endpoint.kind is EndpointKind.HOSTED else endpoint.model,
            kind=endpoint.kind,
            considered=lease.considered,
            reason=(
                lease.reason
                if self._continued_from is None
                else f"goes on from {self._continued_from}: {lease.reason}"
            ),
            cost_usd=(
                None if cost_usd is None or self._spent_unknown else cost_usd + self._spent_usd
            ),
            attempts=self.attempt,
            usage=_both(self._before, tokens),
            timings=full,
            spent_elsewhere_usd=self._spent_usd,
            fallback_from=lease.fallback_from,
            batch=endpoint.batch,
            # Of local models, beside the usage that the API defines.
            mean_logprob=getattr(usage, "mean_logprob", None),
            continued_from=self._continued_from,
            hedged=self._hedged,
            unknown_usd=self._unknown_usd,
            saved_usd=saved_usd,
            lease_id=lease.lease_id,
            lease_usd=cost_usd,
        )
        settlement = Settlement(
            lease_id=lease.lease_id,
            outcome=Outcome.OK,
            usage=tokens,
            cost_usd=cost_usd,
            timings=replace(timings, queue_s=lease.queued_s, total_s=now_s - send.sent_s),
            limit_headers=headers,
            saved_usd=saved_usd,
        )
        return settlement, receipt

    def failed(
        self,
        send: Send,
        error: BackendError,
        now_s: float,
        *,
        delivered: bool = False,
        goes_on: bool = False,
    ) -> tuple[Settlement, Decision]:
        """Settle a failed send and say what to do next.

        Args:
            send: the send.
            error: what the endpoint raised.
            now_s: the clock.
            delivered: part of the answer has reached the caller.
            goes_on: that part is kept, and the rest asked for elsewhere.
        """
        settlement = self._failure(send, error, now_s, delivered=delivered)
        decision = decide(
            error,
            self.attempt,
            now_s - self._began_s,
            self._retry,
            self._rng,
            max_attempts=self._routing.max_attempts,
            deadline_s=self._routing.deadline_s,
            delivered=delivered and not goes_on,
        )
        if (
            not isinstance(decision, Fail)
            and self._extra_sends is not None
            and not self._extra_sends.take()
        ):
            decision = Fail(f"{error.kind}: the task has no extra attempts left")
        if isinstance(decision, Elsewhere):
            self._rest_until_s[send.lease.endpoint.name] = now_s + decision.same_after_s
        return settlement, decision

    def failed_beside(self, send: Send, error: BackendError, now_s: float) -> Settlement:
        """Settle a failed send while another of the call is under way: that one decides."""
        self._rest_until_s.setdefault(send.lease.endpoint.name, now_s)
        return self._failure(send, error, now_s)

    def _failure(
        self, send: Send, error: BackendError, now_s: float, *, delivered: bool = False
    ) -> Settlement:
        endpoint = send.lease.endpoint
        share_s = _share_s(send, now_s)
        if error.endpoint is None:
            error.endpoint = endpoint.name
        # A local failure costs nothing, but what has been delivered took its GPU time; a hosted
        # answer that was lost may have cost its worst.
        unknown = error.maybe_paid and endpoint.kind is EndpointKind.HOSTED
        self._last = error
        cost_usd = None if unknown else _ZERO
        if delivered and endpoint.kind is EndpointKind.LOCAL:
            cost_usd = gpu_seconds_usd(share_s, 1, endpoint.usd_per_hour)
        self._spent(send.lease, cost_usd)
        return Settlement(
            lease_id=send.lease.lease_id,
            outcome=Outcome.UNKNOWN if unknown else Outcome.FAILED,
            cost_usd=cost_usd,
            timings=Timings(queue_s=send.lease.queued_s, total_s=now_s - send.sent_s),
            error_kind=error.kind,
            retry_after_s=error.retry_after_s,
            limit_headers=error.headers,
            unusable=is_unusable(error),
        )

    def beaten(self, send: Send, answer: Answer | None, now_s: float) -> Settlement:
        """Settle a send that another of its call was faster than; its cost is the call's.

        Args:
            send: the slower one.
            answer: its answer, where it came before it could be cancelled.
            now_s: the clock.
        """
        settlement = self.abandoned(send, now_s)
        endpoint = send.lease.endpoint
        if answer is not None and endpoint.kind is EndpointKind.HOSTED:
            usage = answer.message.usage
            settlement = replace(
                settlement,
                outcome=Outcome.CANCELLED,
                usage=token_usage(usage),
                cost_usd=self._catalog.cost_usd(
                    self._served_by(answer.message.model, send),
                    usage,
                    batch=endpoint.batch or None,
                ),
            )
        self._spent(send.lease, settlement.cost_usd)
        return replace(settlement, beaten=True)

    def _spent(self, lease: Lease, cost_usd: Decimal | None) -> None:
        """Add what a send beside the answering one cost; None: unknown, its worst case stays."""
        if cost_usd is None:
            self._spent_unknown = True
            self._unknown_usd += lease.reserved_usd
        else:
            self._spent_usd += cost_usd

    def _served_by(self, model: str, send: Send) -> str:
        return model if self._catalog.find(model) is not None else send.lease.endpoint.model

    def abandoned(
        self, send: Send, now_s: float, usage: Mapping[str, Any] | None = None
    ) -> Settlement:
        """Settle a send that its caller gave up.

        A hosted one may have cost anything up to its reservation, which stays charged; a local
        one costs the GPU time it took.
        """
        endpoint = send.lease.endpoint
        share_s = _share_s(send, now_s)
        hosted = endpoint.kind is EndpointKind.HOSTED
        return Settlement(
            lease_id=send.lease.lease_id,
            outcome=Outcome.UNKNOWN if hosted else Outcome.CANCELLED,
            usage=None if usage is None else token_usage(Usage.model_validate(usage)),
            cost_usd=None if hosted else gpu_seconds_usd(share_s, 1, endpoint.usd_per_hour),
            timings=Timings(queue_s=send.lease.queued_s, total_s=now_s - send.sent_s),
        )

    def unsent(self, lease: Lease) -> Settlement:
        """Settle a lease under which nothing was sent, or nothing that costs."""
        return Settlement(lease_id=lease.lease_id, outcome=Outcome.CANCELLED, cost_usd=_ZERO)


def token_usage(usage: Usage) -> TokenUsage:
    """The API's usage as ours."""
    return TokenUsage(
        input_tokens=usage.input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens or 0,
        cache_read_tokens=usage.cache_read_input_tokens or 0,
        output_tokens=usage.output_tokens,
    )


def _both(one: TokenUsage | None, other: TokenUsage) -> TokenUsage:
    if one is None:
        return other
    return TokenUsage(
        one.input_tokens + other.input_tokens,
        one.cache_write_tokens + other.cache_write_tokens,
        one.cache_read_tokens + other.cache_read_tokens,
        one.output_tokens + other.output_tokens,
    )


def _share_s(send: Send, now_s: float) -> float:
    return 0.0 if send.share is None else send.share.end(send.mark, now_s)
