"""A Ray for this process: start one here, or connect to a running one; tokens are on either way."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import ray_constants

from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.errors import ConfigError

_KNOCK_S: Final = 5.0
_CLUSTER_SWITCH: Final = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


@dataclass(frozen=True, slots=True)
class RayInfo:
    """The Ray this process is connected to.

    Attributes:
        address: of its GCS, `host:port`.
        dashboard_url: None when it has no dashboard.
        session_dir: where Ray keeps logs and sockets; None inside a Ray worker.
        metrics_port: where this node exports Prometheus metrics.
    """

    address: str
    dashboard_url: str | None
    session_dir: Path | None
    metrics_port: int | None


def switch_on_token_auth() -> None:
    """Make Ray's token authentication mandatory for this process and its children."""
    os.environ["RAY_AUTH_MODE"] = "token"
    # Ray read its environment when it was imported; it refreshes itself in this same way.
    ray._raylet.Config.initialize("")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def start_local_ray(*, dashboard: bool = True, num_cpus: int | None = None) -> RayInfo:
    """Start a Ray of our own on this machine, on loopback, with token authentication.

    Args:
        dashboard: whether its dashboard runs too.
        num_cpus: logical CPUs; None: the machine's.

    Raises:
        ConfigError: a Ray is connected already, or it could not start.
    """
    if ray.is_initialized():
        raise ConfigError("this process is connected to a Ray already; call ray.shutdown() first")
    switch_on_token_auth()
    try:
        with _on_loopback():
            ray.init(
                address="local",
                namespace=RAY_NAMESPACE,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                num_cpus=num_cpus,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"Ray did not start ({_one_line(error)}); see `agentcloud doctor`"
        ) from None
    _keep_off_stdout()
    return _ray_info()


def _keep_off_stdout() -> None:
    # Ray prints what happens to its processes there, beside what a command has to say (--json).
    ray._private.worker._worker_logs_enabled = False


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on loopback only.

    By default Linux nodes take the machine's outward address, as nodes of a cluster must; Ray's
    switch against that, named after the systems it was made for, is read at import and again by
    each process that it starts.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_CLUSTER_SWITCH)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[_CLUSTER_SWITCH] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        del os.environ[_CLUSTER_SWITCH]
        if before[1] is not None:
            os.environ[_CLUSTER_SWITCH] = before[1]


def connect_ray(address: str | None = None) -> RayInfo:
    """Connect to a running Ray, with token authentication.

    Args:
        address: `host:port` of its GCS or `auto`; None: RAY_ADDRESS, else the one on this machine.

    Raises:
        ConfigError: none is there, or it does not accept our token.
    """
    if ray.is_initialized():
        return _ray_info()
    switch_on_token_auth()
    target = address or os.environ.get("RAY_ADDRESS") or "auto"
    knock(target)
    try:
        ray.init(
            address=target,
            namespace=RAY_NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except ray.exceptions.AuthenticationError:
        raise ConfigError(
            "the cluster does not accept our token; copy the head's ~/.ray/auth_token to this "
            "machine, or point RAY_AUTH_TOKEN_PATH at it",
            where=target,
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster is there ({_one_line(error)}); start one with `ray start --head` or "
            "`ray up ray_config.yaml`, or name it with --address",
            where=target,
        ) from None
    _keep_off_stdout()
    return _ray_info()


def knock(target: str) -> None:
    """Fail at once where nothing listens: Ray itself tries for a minute and a half, then dies.

    Raises:
        ConfigError: nothing listens there.
    """
    host, _, port = target.rpartition("//")[2].rstrip("/").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto` and the like, which Ray resolves at once.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster is there ({error.strerror or error}); start one with "
            "`ray start --head` or `ray up ray_config.yaml`, or name it with --address",
            where=target,
        ) from None


def _ray_info() -> RayInfo:
    node = ray._private.worker._global_node  # None inside a Ray worker
    info: dict[str, Any] = node.address_info if node is not None else {}
    url = info.get("webui_url")
    return RayInfo(
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=f"http://{url}" if url else None,
        session_dir=Path(info["session_dir"]) if info else None,
        metrics_port=info.get("metrics_export_port"),
    )


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
