"""Doing: lease -> call -> settle. The only transport retry loop.

Every lease that was granted is settled exactly once, however its send ends: answered, failed,
cancelled, or given up in mid-stream.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from agentcloud.cluster.attempts import Attempts, Send
from agentcloud.cluster.cache import CachedCalls
from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_key import may_be_cached
from agentcloud.cluster.cache_marks import reuse_pays, with_marks
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    Call,
    EndpointKind,
    EndpointSpec,
    Lease,
    LeaseRequest,
    Params,
    Routing,
)
from agentcloud.cluster.conversation import for_signer, mark_message, signer_of
from agentcloud.cluster.errors import (
    BackendError,
    CallTimeout,
    InvalidRequest,
    NoEndpoint,
    QueueFull,
    RetriesSpent,
)
from agentcloud.cluster.fault_points import reached
from agentcloud.cluster.gpu_share import GpuShare
from agentcloud.cluster.hedge_race import Race
from agentcloud.cluster.inference_stream import InferenceStream
from agentcloud.cluster.logs import bound_ids
from agentcloud.cluster.message import RoutedMessage, with_receipt
from agentcloud.cluster.ports import Endpoint, SchedulerPort
from agentcloud.cluster.retry import Fail, backoff_s
from agentcloud.cluster.tiers import FleetTiers

T = TypeVar("T")

log = structlog.get_logger()

_DEFAULT_ROUTING: Final = Routing()
_REQUIRED: Final = ("model", "messages", "max_tokens")


@dataclass(frozen=True, slots=True)
class Opened:
    """A send that is about to happen: its record, its endpoint, and who signs there."""

    send: Send
    endpoint: Endpoint
    signer: str


class Inference:
    """Serves calls by any endpoint of the fleet; one object a process, for any number of calls."""

    def __init__(
        self,
        scheduler: SchedulerPort,
        endpoints: Callable[[EndpointSpec], Endpoint],
        config: FleetConfig,
        clock: Clock | None = None,
        *,
        rng: random.Random | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
        cache: CacheClient | None = None,
    ) -> None:
        """Nothing is opened before the first call.

        Args:
            scheduler: who hands out leases.
            endpoints: opens an endpoint; asked once for every spec.
            config: fleet.yaml.
            clock: the time seam; None: the machine's.
            rng: source of jitter; None: seeded by the machine.
            on_close: ends what was opened for this object, once its endpoints are closed.
            cache: the response cache; None: every call is sent.
        """
        self.config = config
        self._scheduler = scheduler
        self._open = endpoints
        self._endpoints: dict[EndpointSpec, tuple[Endpoint, str]] = {}
        self._shares: dict[str, GpuShare] = {}
        self._clock = clock or SystemClock()
        self._on_close = on_close
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._catalog = load_catalog().with_overrides(config.hosted)
        # Names that a request's model may resolve to, for one clear error before any lease.
        tiers = {self._catalog.entries[name].tier for name in config.hosted}
        tiers |= {model.tier for model in config.models.values()}
        self._names = frozenset({*config.models, *config.hosted, *tiers})
        self.tiers = FleetTiers.of(config, self._catalog)
        self._resolved: dict[str, str] = {}
        self._call_prefix = f"call-{secrets.token_hex(6)}"
        self._numbers = itertools.count(1)
        self._cached = (
            None if cache is None else CachedCalls(cache, self.tiers, self._clock, self._create)
        )

    def __repr__(self) -> str:
        return f"Inference({', '.join(sorted(self._names))}; open={len(self._endpoints)})"

    async def create(self, params: Params, routing: Routing = _DEFAULT_ROUTING) -> RoutedMessage:
        """Serve one call and wait for the whole answer.

        Args:
            params: of the Messages API, JSON-able, without `stream`.
            routing: what agentcloud adds.

        Returns:
            The answer, its receipt at `message.agentcloud`.

        Raises:
            BackendError: no attempt succeeded; the last one's error.
            NoEndpoint: nothing can ever serve the request.
            BudgetExceeded: its worst case would pass a cap.
        """
        if self._cached is None or not may_be_cached(params, routing):
            return await self._create(params, routing)
        _check(params, _REQUIRED)
        model = self._resolve(routing.tier or params["model"])
        return await self._cached.create(params, routing, model, self._next_id())

    async def _create(self, params: Params, routing: Routing) -> RoutedMessage:
        """Serve one call by an endpoint."""
        run = self.begin(params, routing)
        while True:
            opened = await self.lease(run, params)
            send = opened.send
            reached("leased")
            race = Race(self, self._scheduler, self._clock, run, params, opened)
            try:
                with bound_ids(call=send.call.call_id, endpoint=send.lease.endpoint.name):
                    answer = await race.answer()
            except BackendError as error:
                await self.after_failure(run, race.opened.send, error)
                continue
            except BaseException:
                self._scheduler.settle(run.abandoned(race.opened.send, self._clock.now()))
                raise
            message = answer.message
            reached("answered")
            mark_message(message.content, race.opened.signer)
            settlement, receipt = run.succeeded(
                race.opened.send,
                message.model,
                message.usage,
                answer.timings,
                answer.limit_headers,
                self._clock.now(),
            )
            self._scheduler.settle(settlement)
            reached("settled")
            return with_receipt(message, receipt)

    def stream(self, params: Params, routing: Routing = _DEFAULT_ROUTING) -> InferenceStream:
        """Serve one call as raw events: `async with` it, iterate, then read its `receipt`.

        Until its first content event a stream is retried like any call; after it never, unless
        `routing.continuation` asks for it: it ends in `StreamBroken`.
        """
        return InferenceStream(self, self._scheduler, self._clock, params, routing)

    async def count_tokens(self, params: Params, routing: Routing = _DEFAULT_ROUTING) -> int:
        """Tokens of the prompt, as an endpoint able to serve it counts them.

        Raises:
            BackendError: no attempt succeeded.
            NoEndpoint: nothing can ever serve the request.
        """
        run = self.begin(params, routing, max_output_tokens=1)
        while True:
            opened = await self.lease(run, params)
            try:
                tokens = await opened.endpoint.count_tokens(opened.send.call.params)
            except BackendError as error:
                await self.after_failure(run, opened.send, error)
                continue
            except BaseException:
                self.release(run, opened.send)
                raise
            self.release(run, opened.send)
            return tokens

    async def close(self) -> None:
        """Close every endpoint; calls in flight are aborted."""
        if self._cached is not None:
            await self._cached.close()
        endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint, _ in endpoints:
            await endpoint.close()
        if self._on_close is not None:
            await self._on_close()

    def begin(
        self,
        params: Params,
        routing: Routing,
        *,
        max_output_tokens: int | None = None,
        stream: bool = False,
    ) -> Attempts:
        """Check a request and begin its call.

        Raises:
            InvalidRequest: it lacks what every request needs.
            NoEndpoint: its model maps to nothing of this fleet.
        """
        _check(params, _REQUIRED[:2] if max_output_tokens else _REQUIRED)
        return Attempts(
            self._next_id(),
            self._resolve(routing.tier or params["model"]),
            params,
            routing,
            retry=self.config.retry,
            catalog=self._catalog,
            rng=self._rng,
            now_s=self._clock.now(),
            max_output_tokens=max_output_tokens,
            stream=stream,
        )

    async def lease(self, run: Attempts, params: Params) -> Opened:
        """Wait for the next send's lease and make the send ready."""
        asked_s = self._clock.now()
        request = run.next_request(asked_s)
        try:
            lease = await self._acquired(request)
        except RetriesSpent as why:
            raise run.given_up(why) from why
        try:
            if rest_s := run.rest_s(lease, self._clock.now()):
                await self._clock.sleep(rest_s)
            return self.ready(run, lease, params, asked_s)
        except BaseException:
            self._scheduler.settle(run.unsent(lease))
            raise

    async def _acquired(self, request: LeaseRequest) -> Lease:
        left_s = request.routing.deadline_s
        if left_s is None:
            return await self._admitted(request)
        try:
            async with asyncio.timeout(left_s):
                return await self._admitted(request)
        except TimeoutError:
            raise CallTimeout(
                f"no endpoint was free within {left_s:.3g} s; give more time or add capacity",
                timeout_s=left_s,
            ) from None

    async def _admitted(self, request: LeaseRequest) -> Lease:
        """A lease; while the scheduler's queue is full, the request is held back here."""
        tries = 1
        while True:
            try:
                return await self._scheduler.acquire(request)
            except QueueFull as full:
                wait_s = backoff_s(tries, self.config.retry, self._rng)
                await self._clock.sleep(max(wait_s, full.retry_after_s or 0.0))
                tries += 1

    def ready(self, run: Attempts, lease: Lease, params: Params, asked_s: float) -> Opened:
        """Make the send under a lease ready."""
        spec = lease.endpoint
        if (known := self._endpoints.get(spec)) is None:
            account = self.config.accounts[spec.account] if spec.account else None
            signer = signer_of(spec, account.base_url if account else None)
            known = self._endpoints[spec] = self._open(spec), signer
        endpoint, signer = known
        messages = for_signer(params["messages"], signer)
        now_s = self._clock.now()
        sent: dict[str, Any] = {**params, "model": spec.model, "messages": messages}
        if run.mean_logprob:
            sent["mean_logprob"] = True
        if lease.reused_chunks:
            sent = self._marked(sent, lease, run.input_tokens)
        call: Call = run.leased(lease, sent, asked_s, now_s)
        if lease.warms:
            call = replace(call, on_first=partial(self._scheduler.warmed, lease.lease_id))
        share = mark = None
        if spec.kind is EndpointKind.LOCAL:
            share = self._shares.setdefault(spec.name, GpuShare())
            mark = share.begin(now_s)
        return Opened(Send(lease, call, now_s, share, mark or 0.0), endpoint, signer)

    def _marked(self, params: dict[str, Any], lease: Lease, tokens: int) -> dict[str, Any]:
        """The request with marks for the model's cache, where they pay."""
        spec = lease.endpoint
        entry = self._catalog.find(spec.model)
        if entry is None or not reuse_pays(entry, tokens):
            return params
        return with_marks(params, lease.reused_chunks, entry.min_cache_tokens)

    async def after_failure(
        self, run: Attempts, send: Send, error: BackendError, *, goes_on: bool = False
    ) -> None:
        """Settle a failed send; return when the next may be tried.

        Args:
            run: its call.
            send: the send.
            error: what its endpoint raised.
            goes_on: it delivered part of a stream, of which the rest is to be asked for.

        Raises:
            BackendError: the error, where there is to be no other send.
        """
        now_s = self._clock.now()
        settlement, decision = run.failed(send, error, now_s, delivered=goes_on, goes_on=goes_on)
        self._scheduler.settle(settlement)
        error.sends = run.attempt
        log.warning(
            "send failed",
            call=send.call.call_id,
            endpoint=send.lease.endpoint.name,
            attempt=run.attempt,
            kind=error.kind,
            why=str(error),
            then="fails" if isinstance(decision, Fail) else "is sent again",
        )
        if isinstance(decision, Fail):
            raise error
        if decision.wait_s > 0:
            await self._clock.sleep(decision.wait_s)

    def release(self, run: Attempts, send: Send) -> None:
        """Give a lease back under which nothing was sent that costs."""
        if send.share is not None:
            send.share.end(send.mark, self._clock.now())
        self._scheduler.settle(run.unsent(send.lease))

    def _next_id(self) -> str:
        return f"{self._call_prefix}-{next(self._numbers)}"

    def _resolve(self, model: str) -> str:
        resolved = self._resolved.get(model)
        if resolved is None:
            resolved = self.config.resolve(model)
            if resolved not in self._names:
                raise NoEndpoint(
                    f"no model or tier {model!r} in this fleet (there are: "
                    f"{', '.join(sorted(self._names))}); ask for one of these or map the name "
                    f"under aliases: in fleet.yaml"
                )
            self._resolved[model] = resolved
        return resolved


def _check(params: Params, required: tuple[str, ...]) -> None:
    if missing := [key for key in required if key not in params]:
        raise InvalidRequest(f"the request lacks {', '.join(missing)}")
