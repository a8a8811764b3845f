"""A job on the Ray that this process is connected to: start it, follow it, cancel it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.errors import AgentCloudError, ConfigError, TaskError
from agentcloud.cluster.ray_session import connect_ray
from agentcloud.tasks.results import open_results, read_results
from agentcloud.tasks.sources import survey
from agentcloud.tasks.spec import JobRecord, JobSpec
from agentcloud.tasks.supervisor import SupervisorActor

#: A job that starts or tells its record answers within this, seconds.
CONTROL_TIMEOUT_S = 60.0
#: A job whose driver does not ask for its record for so long stops by itself, seconds.
MIRROR_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a job would do, found out before anything starts.

    Attributes:
        total: inputs in the file.
        bad: inputs that cannot be read.
        already_done: results that the output file holds already.
    """

    total: int
    bad: int
    already_done: int

    @property
    def nothing_to_do(self) -> bool:
        """Whether every input has its result already."""
        return self.already_done >= self.total


def preflight(spec: JobSpec) -> Preflight:
    """Check input and output of a job; leaves no trace.

    Raises:
        ConfigError: either cannot be used.
    """
    surveyed = survey(spec.input, on_bad=spec.on_bad_input, source=spec.source)
    results = open_results(spec.output)
    results.leave()
    already_done = results.done if spec.retry_failed else results.done + results.failed
    return Preflight(surveyed.total, surveyed.bad, already_done)


class Job:
    """Handle of a running (or ended) job. Made by `start_job`."""

    def __init__(self, spec: JobSpec, actor: Any) -> None:
        self.spec = spec
        self._actor = actor
        self._last: JobRecord | None = None

    def __repr__(self) -> str:
        state = self._last.label if self._last else "started"
        return f"Job({self.job_id!r}, {state})"

    @property
    def job_id(self) -> str:
        """Its id."""
        return self.spec.job_id

    def record(self) -> JobRecord:
        """The job as it stands.

        Raises:
            TaskError: its supervisor died; what was done is in the results file.
        """
        if self._last is not None and self._last.state.is_final:
            return self._last
        try:
            record: JobRecord = fetch(self._actor.record.remote())
        except ray.exceptions.RayActorError:
            raise TaskError(
                f"the supervisor of job {self.job_id} died; what is done is in "
                f"{self.spec.output}: run the same command again to go on"
            ) from None
        self._last = record
        return record

    def wait(
        self, on_progress: Callable[[JobRecord], None] | None = None, *, poll_s: float = 0.2
    ) -> JobRecord:
        """Wait until the job has ended.

        Args:
            on_progress: gets the record at every poll.
            poll_s: how often.
        """
        while True:
            record = self.record()
            if on_progress is not None:
                on_progress(record)
            if record.state.is_final:
                return record
            time.sleep(poll_s)

    def results(self, *, poll_s: float = 0.2) -> Iterator[dict[str, Any]]:
        """Result lines as they come, until the job has ended; those of earlier runs first."""
        given = 0
        while True:
            ended = self.record().state.is_final
            for number, line in enumerate(read_results(self.spec.output)):
                if number >= given:
                    given += 1
                    yield line
            if ended:
                return
            time.sleep(poll_s)

    def cancel(self) -> None:
        """Stop the job; its calls in flight are aborted, what is done is kept."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            fetch(self._actor.cancel.remote())

    def close(self) -> None:
        """End the supervisor and its workers, whatever they are doing."""
        ray.kill(self._actor)


def start_job(
    spec: JobSpec, *, total: int, detached: bool = False, origin: dict[str, Any] | None = None
) -> Job:
    """Start a job's supervisor beside this process and let it go.

    Args:
        spec: the job; its paths are this node's.
        total: inputs, as `preflight` counted them.
        detached: it outlives this process, for `MIRROR_TIMEOUT_S` at most.
        origin: what its submitter gave, for whoever resumes it.

    Raises:
        ConfigError: no fleet is up.
    """
    here = ray.get_runtime_context().get_node_id()
    actor = SupervisorActor.options(
        name=f"job:{spec.job_id}",
        namespace=RAY_NAMESPACE,
        num_cpus=0,
        lifetime="detached" if detached else None,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            here, soft=False
        ),
    ).remote(spec, total, MIRROR_TIMEOUT_S if detached else None, origin)
    try:
        fetch(actor.start.remote())
    except BaseException:
        ray.kill(actor)
        raise
    return Job(spec, actor)


def find_supervisor(job_id: str) -> Any | None:
    """The supervisor of a job that runs on this cluster; None: it does not."""
    try:
        return ray.get_actor(f"job:{job_id}", namespace=RAY_NAMESPACE)
    except ValueError:
        return None


def ask_supervisor(job_id: str, address: str | None, ask: Callable[[Any], Any]) -> Any:
    """Ask the supervisor of a job that runs on a cluster.

    Args:
        job_id: the job.
        address: of the cluster; None: RAY_ADDRESS, else the one on this machine.
        ask: asks the actor.

    Raises:
        ConfigError: the job does not run there.
    """
    connect_ray(address)
    try:
        actor = find_supervisor(job_id)
        if actor is None:
            raise ConfigError(
                f"job {job_id} does not run on this cluster; `agentcloud jobs` lists jobs, and "
                f"`agentcloud resume` goes on with one that was cut off"
            )
        return fetch(ask(actor))
    finally:
        ray.shutdown()


def fetch(ref: Any, *, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
    """`ray.get` that raises our own errors as they were raised in the actor."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AgentCloudError):
            raise error.cause from None
        raise
