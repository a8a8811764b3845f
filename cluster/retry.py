"""Pure: a failed send -> fail, wait, or go elsewhere.

Classified by the error type of the API's body, not by the status: an error can arrive inside a
stream after a 200. inference.py is the only caller, and the only transport retry loop.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from agentcloud.cluster.config_rules import Retry
from agentcloud.cluster.errors import BackendError, BatchFailed, RateLimited, ReplicaLost


@dataclass(frozen=True, slots=True)
class Fail:
    """Give the error to the caller."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Send again after `wait_s` seconds; the same endpoint is as good as another."""

    wait_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Ask for a lease again, preferring another endpoint.

    Attributes:
        wait_s: seconds to wait before asking.
        same_after_s: seconds before which the same endpoint must not be used, should it be the
            only one; the scheduler holds it back for as long (its cooldown begins at settlement).
    """

    wait_s: float
    reason: str
    same_after_s: float = 0.0


Decision = Fail | Wait | Elsewhere

#: The request itself is wrong, or the answer was: no endpoint would do better.
REQUEST_KINDS: Final = frozenset({"invalid_request_error", "request_too_large", "refusal"})
#: The endpoint cannot be used until its configuration changes.
UNUSABLE_KINDS: Final = frozenset(
    {"authentication_error", "billing_error", "permission_error", "not_found_error"}
)
RATE_LIMIT_KIND: Final = "rate_limit_error"
CONFLICT_KIND: Final = "conflict_error"
#: The endpoint is in trouble; these count against its health.
HEALTH_KINDS: Final = frozenset(
    {"api_error", "timeout_error", "overloaded_error", "connection_error"}
)


def is_unusable(error: BaseException) -> bool:
    """Whether the endpoint must rest until its configuration changes."""
    return isinstance(error, BackendError) and classify(error) in UNUSABLE_KINDS


def is_paced(error: BackendError) -> bool:
    """Whether sending the call again cannot feed a storm, so that no retry quota is charged.

    Three cases: a rate limit (nothing was worked on, and the scheduler itself holds the account
    back for as long as it was told), a batch's failure (batches take hours), and a replica that is
    gone (its calls move to others, which takes the place of the load it had).
    """
    return isinstance(error, ReplicaLost | BatchFailed) or classify(error) == RATE_LIMIT_KIND


def classify(error: BackendError) -> str:
    """The error's type as one of the kinds above; an unknown type is judged by its status."""
    kind = error.kind
    if (
        kind in REQUEST_KINDS
        or kind in UNUSABLE_KINDS
        or kind in HEALTH_KINDS
        or kind in (RATE_LIMIT_KIND, CONFLICT_KIND)
    ):
        return kind
    return kind_of_status(error.status)


def kind_of_status(status: int | None) -> str:
    """The API's error type for a status whose body did not name a known one."""
    if status is None or status >= 500 or status == 408:
        return "api_error"
    by_status = {
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        409: CONFLICT_KIND,
        413: "request_too_large",
        429: RATE_LIMIT_KIND,
    }
    return by_status.get(status, "invalid_request_error" if status >= 400 else "api_error")


def backoff_s(attempt: int, retry: Retry, rng: random.Random) -> float:
    """Full jitter: uniform between 0 and the doubled backoff of this attempt, seconds."""
    ceiling = min(retry.max_backoff_s, retry.base_s * 2.0 ** min(attempt - 1, 60))
    return rng.uniform(0.0, ceiling)


def retry_after_of(error: BackendError) -> float | None:
    """What the server asked to wait, seconds, in full; None if it did not say."""
    after = getattr(error, "retry_after_s", None)
    return None if after is None else max(0.0, float(after))


def decide(
    error: BaseException,
    attempt: int,
    elapsed_s: float,
    retry: Retry,
    rng: random.Random,
    *,
    max_attempts: int | None = None,
    deadline_s: float | None = None,
    delivered: bool = False,
    resend_maybe_paid: bool = True,
) -> Decision:
    """What to do about the failure of one send.

    Args:
        error: what the endpoint (or the scheduler) raised.
        attempt: number of this send, from 1.
        elapsed_s: seconds since the caller asked.
        retry: fleet.yaml's `retry:`.
        rng: source of jitter.
        max_attempts: the call's own cap on sends; None: `retry.max_attempts`.
        deadline_s: seconds from the caller's request after which an answer is worthless.
        delivered: events of this call have reached the caller, who cannot take them back.
        resend_maybe_paid: whether a send whose answer was lost may be paid for again. Its first
            cost stays charged as unknown either way.
    """
    if not isinstance(error, BackendError):
        return Fail(f"{type(error).__name__} is not an endpoint's failure")
    kind = classify(error)
    if kind in REQUEST_KINDS:
        return Fail(f"{kind}: no endpoint would take this request")
    if kind in UNUSABLE_KINDS:
        return Fail(f"{kind}: {_where(error)} is unusable until its configuration changes")
    if delivered:
        return Fail(f"{kind} after part of the answer reached the caller")
    if error.maybe_paid and not resend_maybe_paid:
        return Fail(f"{kind}: the send may have been paid for and must not be repeated")
    allowed = retry.max_attempts if max_attempts is None else max_attempts
    if attempt >= allowed:
        return Fail(f"{kind}: attempt {attempt} of {allowed} was the last")
    decision = _again(error, kind, attempt, retry, rng)
    if deadline_s is not None and elapsed_s + decision.wait_s >= deadline_s:
        return Fail(f"{kind}: another attempt would pass the deadline of {deadline_s:g} s")
    return decision


def _again(
    error: BackendError, kind: str, attempt: int, retry: Retry, rng: random.Random
) -> Wait | Elsewhere:
    # Four cases: the account is out of its limit (another is not; this one rests as long as it
    # said), a conflict or a batch's failure (the same request again, later), a replica that died
    # (nothing to wait for elsewhere), an endpoint in trouble (elsewhere, after a backoff that
    # spreads the retries).
    asked_s = retry_after_of(error)
    paid = "; the lost answer may have been paid for" if error.maybe_paid else ""
    where = _where(error)
    if kind == RATE_LIMIT_KIND or isinstance(error, RateLimited):
        rest_s = backoff_s(attempt, retry, rng) if asked_s is None else asked_s
        said = "own backoff" if asked_s is None else "as it asked"
        return Elsewhere(0.0, f"{where} is rate limited for {rest_s:.3g} s ({said}){paid}", rest_s)
    if kind == CONFLICT_KIND or isinstance(error, BatchFailed):
        wait_s = max(backoff_s(attempt, retry, rng), asked_s or 0.0)
        return Wait(wait_s, f"{where} failed with {kind}, no fault of the endpoint{paid}")
    if isinstance(error, ReplicaLost):
        wait_s = 0.0 if attempt == 1 else backoff_s(attempt, retry, rng)
        return Elsewhere(wait_s, f"{where} was lost{paid}")
    wait_s = backoff_s(attempt, retry, rng)
    return Elsewhere(wait_s, f"{where} failed with {kind}{paid}", max(wait_s, asked_s or 0.0))


def _where(error: BackendError) -> str:
    return error.endpoint or "the endpoint"
