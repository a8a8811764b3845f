"""Jobs from Python: what the command line does, as objects.

with Client(fleet="fleet.yaml") as client:
job = client.run("agent.py:triage", tickets, output="results.jsonl", budget_usd="2")
for line in job.results():
print(line["id"], line["status"])
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.lifecycle import RayInfo
from agentcloud.tasks.after import looking, wait_for_jobs
from agentcloud.tasks.jobs import Job, preflight, start_job
from agentcloud.tasks.session import cluster_for_run
from agentcloud.tasks.sources import survey
from agentcloud.tasks.spec import JobSpec, new_job_id
from agentcloud.tasks.submission import Submissions, SubmittedJob

#: A file or a dataset's folder, or the inputs themselves, one an item.
Inputs: TypeAlias = str | os.PathLike[str] | Iterable[Any]
Money: TypeAlias = Decimal | int | str


class Client:
    """Runs and submits jobs.

    Args:
        address: a running cluster; None: RAY_ADDRESS, else (for `run`) one of this client's own.
        fleet: the models of a cluster of its own.
        dashboard: whether that one runs Ray's dashboard.
        on_progress: gets a line whenever a cluster of its own changes while it starts.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        fleet: str | os.PathLike[str] = "fleet.yaml",
        dashboard: bool = False,
        on_progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._address = address
        self._fleet = Path(fleet)
        self._dashboard = dashboard
        self._on_progress = on_progress
        self._stack = contextlib.ExitStack()
        self._info: RayInfo | None = None
        self._submissions: Submissions | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its running jobs and a cluster of its own. Safe to call twice."""
        self._stack.close()
        self._info = None

    def connect(self) -> RayInfo:
        """Connect to the cluster, or start one; `run` does it by itself.

        Raises:
            ConfigError: the fleet file is wrong, the cluster is not there, or it has no fleet.
        """
        if self._info is None:
            self._info = self._stack.enter_context(
                cluster_for_run(
                    address=self._address,
                    fleet=self._fleet,
                    dashboard=self._dashboard,
                    on_progress=self._on_progress,
                )
            )
        return self._info

    def run(
        self,
        agent: str,
        inputs: Inputs,
        *,
        output: str | os.PathLike[str],
        budget_usd: Money | None = None,
        task_budget_usd: Money | None = None,
        **settings: Any,
    ) -> Job:
        """Start a job beside this process; `job.wait()` or `job.results()` follow it.

        Args:
            agent: `path/to/file.py:name` or `module:name`.
            inputs: a file or a dataset's folder, or the inputs themselves: an iterable of JSON
                values, which is written to a temporary file as it comes.
            output: results file, or *.parquet; tasks already in it are not done again.
            budget_usd: cap over the job.
            task_budget_usd: cap over each task.
            **settings: further fields of `JobSpec`: concurrency, workers, attempts, ...; `after`
                are ids of jobs that are waited for first.

        Raises:
            ConfigError: anything that a user can mend, before anything starts.
        """
        spec = JobSpec(
            job_id=new_job_id(),
            agent=agent,
            input=self._input_file(inputs),
            output=Path(output).absolute(),
            budget_usd=_usd(budget_usd),
            task_budget_usd=_usd(task_budget_usd),
            folder=Path.cwd(),
            **settings,
        )
        if spec.after:  # first: their results may be this one's input
            with looking(self._address, self._fleet) as look:
                wait_for_jobs(spec.after, look, on_wait=self._on_progress)
        found = preflight(spec)
        self.connect()
        job = start_job(spec, total=found.total)
        self._stack.callback(job.close)
        return job

    def submit(
        self,
        agent: str,
        inputs: Inputs,
        *,
        working_dir: str | os.PathLike[str] = ".",
        budget_usd: Money | None = None,
        task_budget_usd: Money | None = None,
        **settings: Any,
    ) -> str:
        """Send a job to the cluster, where it runs without this process; returns its id.

        Args:
            agent: `path/to/file.py:name` below `working_dir`, or `module:name`.
            inputs: a file or a dataset's folder, or the inputs themselves: an iterable of JSON
                values, which is written to a temporary file as it comes.
            working_dir: the folder that is sent.
            budget_usd: cap over the job.
            task_budget_usd: cap over each task.
            **settings: further fields of `JobSpec`.
        """
        spec = JobSpec(
            job_id=new_job_id(),
            agent=agent,
            input=self._input_file(inputs),
            output=Path("results.jsonl"),
            budget_usd=_usd(budget_usd),
            task_budget_usd=_usd(task_budget_usd),
            **settings,
        )
        survey(spec.input, on_bad=spec.on_bad_input)
        return self._remote().submit(spec, folder=Path(working_dir).absolute())

    def status(self, job_id: str) -> SubmittedJob:
        """A submitted job as it stands."""
        return self._remote().get(job_id)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> SubmittedJob:
        """Wait until a submitted job has ended."""
        return self._remote().wait(job_id, timeout_s=timeout_s)

    def results(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Result lines of a submitted job so far."""
        for line in self._remote().results(job_id):
            yield json.loads(line)

    def cancel(self, job_id: str) -> bool:
        """Stop a submitted job; returns whether it was running."""
        return self._remote().cancel(job_id)

    def list(self) -> list[SubmittedJob]:
        """The cluster's submitted jobs, the newest first."""
        return self._remote().list()

    def _remote(self) -> Submissions:
        if self._submissions is None:
            self._submissions = Submissions(self._address)
        return self._submissions

    def _input_file(self, inputs: Inputs) -> Path:
        if isinstance(inputs, (str, os.PathLike)):
            return Path(inputs).absolute()
        if isinstance(inputs, (Mapping, bytes)):
            kind = type(inputs).__name__
            raise ConfigError(f"inputs are a file or an iterable, one input an item, no {kind}")
        # As they come: a generator of ten million is never held.
        folder = tempfile.TemporaryDirectory(prefix="agentcloud-")
        path = Path(folder.name) / "inputs.jsonl"
        try:
            with path.open("w") as file:
                file.writelines(map(_json_line, inputs))
        except BaseException:
            folder.cleanup()
            raise
        self._stack.callback(folder.cleanup)
        return path


def _json_line(entry: Any) -> str:
    try:
        return json.dumps(entry, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an input is no JSON value: {error}") from None


def _usd(amount: Money | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)
