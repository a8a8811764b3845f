"""`agentcloud explain CALL`: why a call went where it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import GcsAddressOpt, JsonOpt
from agentcloud.tasks.render import show_duration, stdout_console


def explain_command(
    call: Annotated[
        str, typer.Argument(help="The call's id: `call` in a results line, `call_id` of a receipt.")
    ],
    address: GcsAddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show why a call went where it went: considered, ruled out, chosen, what really happened.

    The scheduler keeps the last 10,000 calls. Examples:

        agentcloud explain call-5f0c2d9a11be-17

        agentcloud explain call-5f0c2d9a11be-17 --json
    """
    import ray

    from agentcloud.cluster import lifecycle
    from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME

    lifecycle.connect_ray(address)
    try:
        scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
        told = ray.get(scheduler.explain.remote(call), timeout=30)
    except ValueError:
        raise ConfigError("no fleet is up on this cluster; `agentcloud up` starts one") from None
    finally:
        ray.shutdown()
    if told is None:
        raise ConfigError(
            f"no call {call!r} is known to the scheduler, which keeps the last 10,000 since its "
            f"start; a results line names its calls under `calls[].call`, and of a cached one the "
            f"call that was sent under `calls[].reason`"
        )
    if as_json:
        typer.echo(json.dumps(told))
    else:
        stdout_console().print(explained(told))


def explained(told: Mapping[str, Any]) -> Group:
    """A call's explanation as a person reads it."""
    asked = (
        f"{told['call']}: asked for {told['asked_for']!r}, {told['input_tokens']:,} prompt tokens"
    )
    if told["deadline_s"] is not None:
        asked += f", within {show_duration(told['deadline_s'])}"
    parts: list[Any] = [asked]
    for send in told["sends"]:
        parts.append(_send_table(send))
        parts.append(f"  why: {send['why']}")
        if send["chosen"] is not None:
            parts.append(f"  happened: {_happened(send)}")
    if told["ruled_out"]:
        parts.append("ruled out:")
        parts.extend(
            f"  {name}: {why or 'an equal of one above'}" for name, why in told["ruled_out"].items()
        )
    return Group(*parts)


def _send_table(send: Mapping[str, Any]) -> Table:
    table = Table(title=f"send {send['attempt']}", title_justify="left")
    table.add_column("considered", overflow="fold")
    for heading in ("first token", "wait", "whole", "others wait", "cost", "cached"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for each in send["considered"]:
        chosen = each["endpoint"] == send["chosen"]
        table.add_row(
            each["endpoint"],
            _seconds(each["predicted_ttft_s"]),
            _seconds(each["predicted_wait_s"]),
            _seconds(each["predicted_total_s"]),
            _seconds(each["predicted_others_wait_s"]),
            f"${each['predicted_cost_usd']:.6f}",
            f"{each['cached_tokens']:,}",
            "chosen" if chosen else each["not_now"] or "free",
            style="bold" if chosen else None,
        )
    return table


def _happened(send: Mapping[str, Any]) -> str:
    words = [str(send["happened"])]
    if send.get("total_s") is not None:
        words.append(f"first token {_seconds(send['ttft_s'])}, whole {_seconds(send['total_s'])}")
    if send.get("cost_usd") is not None:
        words.append(f"${send['cost_usd']}")
    if send.get("prompt_tokens") is not None:
        words.append(
            f"{send['prompt_tokens']:,} tokens in ({send['cache_read_tokens']:,} cached), "
            f"{send['output_tokens']:,} out"
        )
    return "; ".join(words)


def _seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:.3f} s"
