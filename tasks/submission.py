"""Jobs on a cluster that may be elsewhere, over Ray's own job API (HTTP) alone.

A submitted job is a Ray job whose driver is `job_main`. It keeps the job's record and results
under the log folder of its Ray session, where Ray's log API serves them from any node, during the
job and after it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from agentcloud.cluster.errors import ConfigError, TaskError
from agentcloud.cluster.ray_session import knock, switch_on_token_auth
from agentcloud.tasks.package import pack
from agentcloud.tasks.spec import JobSpec

#: Below the log folder of the Ray session.
JOBS_FOLDER = "agentcloud"
RECORD_FILE = "record.json"
RESULTS_FILE = "results.jsonl"
#: Marks Ray jobs as ours.
_LABEL = "agentcloud"
#: What Ray's client raises when a cluster is not there or does not want.
_REFUSALS = (RayError, ConnectionError, RuntimeError, ValueError, requests.RequestException)


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A submitted job as the cluster tells it.

    Attributes:
        status: Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        started_unix_s: None while pending.
        record: the supervisor's record as JSON; None before it started.
    """

    job_id: str
    agent: str
    status: str
    started_unix_s: float | None
    ended_unix_s: float | None
    message: str | None
    record: dict[str, Any] | None

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}

    @property
    def state(self) -> str:
        """The job's own state where it is known, else Ray's."""
        known = self.record["state"] if self.record else None
        if known in (None, "pending", "running", "stopping") and self.is_final:
            return {"STOPPED": "cancelled", "SUCCEEDED": "done"}.get(self.status, "failed")
        return known or self.status.lower()

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "job_id": self.job_id,
            "agent": self.agent,
            "state": self.state,
            "ray_status": self.status,
            "started_unix_s": self.started_unix_s,
            "ended_unix_s": self.ended_unix_s,
            "message": self.message if self.status == "FAILED" else None,
            "record": self.record,
        }


class Submissions:
    """The jobs of one cluster.

    Args:
        address: `http://host:8265`, `host:port` of its GCS, or `auto`; None: RAY_ADDRESS, else the
            Ray of this machine.

    Raises:
        ConfigError: no cluster is there, or it does not accept our token.
    """

    def __init__(self, address: str | None = None) -> None:
        switch_on_token_auth()
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        self._where = address or os.environ.get("RAY_ADDRESS") or "auto"
        knock(self._where)
        try:
            with _ray_address(address):
                self._client = JobSubmissionClient(None if self._where == "auto" else self._where)
        except (
            RayError,
            ConnectionError,
            RuntimeError,
            ValueError,
            requests.RequestException,
        ) as error:
            raise ConfigError(_why_not(error), where=self._where) from None
        self.dashboard_url: str = self._client.get_address()

    def submit(self, spec: JobSpec, *, folder: Path) -> str:
        """Send a job with the user's folder and its input; returns its id.

        Raises:
            ConfigError: the folder is too large, the cluster refuses, or it has no such job as is
                to be waited for.
        """
        for job_id in spec.after:
            self._details(job_id)
        with tempfile.TemporaryDirectory(prefix="agentcloud-") as scratch:
            package = Path(scratch) / "package.zip"
            inside = pack(folder, spec.input, package)
            remote = spec.model_copy(
                update={
                    "input": inside,
                    "source": spec.source or spec.input.name,
                    "output": Path(RESULTS_FILE),
                    "folder": None,
                    "pin_to_node": False,
                }
            )
            text = shlex.quote(remote.model_dump_json())
            try:
                self._client.submit_job(
                    entrypoint=f"python -m agentcloud.tasks.job_main {text}",
                    submission_id=spec.job_id,
                    runtime_env={"working_dir": str(package)},
                    metadata={
                        _LABEL: "job",
                        "agent": spec.agent,
                        "input": spec.input.name,
                        # Its name in Ray's dashboard.
                        "job_name": f"job:{spec.job_id}",
                    },
                )
            except _REFUSALS as error:
                raise ConfigError(
                    f"did not take the job ({_line(error)})", where=self._where
                ) from None
        return spec.job_id

    def clear_for(self, job_id: str) -> bool:
        """Make room for a job that may have been submitted before; False: it runs, or is done.

        One that was cut off or cancelled is forgotten by Ray, and goes on from the ledger.
        """
        try:
            details = self._details(job_id)
        except ConfigError:
            return True
        if details.status in {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCEEDED}:
            return False
        self._client.delete_job(job_id)
        return True

    def list(self) -> list[SubmittedJob]:
        """Our jobs, the newest first, without their records."""
        ours = [
            job for job in self._client.list_jobs() if (job.metadata or {}).get(_LABEL) == "job"
        ]
        ours.sort(key=lambda job: -(job.start_time or 0))
        return [_job(details, None) for details in ours]

    def get(self, job_id: str) -> SubmittedJob:
        """One job with its record.

        Raises:
            ConfigError: there is no such job.
        """
        details = self._details(job_id)
        text = b"".join(self._file(details, RECORD_FILE))
        return _job(details, json.loads(text) if text else None)

    def logs(self, job_id: str) -> str:
        """Everything its driver and workers printed so far.

        Raises:
            ConfigError: there is no such job.
        """
        self._details(job_id)
        return str(self._client.get_job_logs(job_id))

    def follow_logs(self, job_id: str) -> AsyncIterator[str]:
        """What is printed, as it comes, until the job has ended."""
        self._details(job_id)
        tail: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        return tail

    def results(self, job_id: str) -> Iterator[bytes]:
        """Whole result lines so far, with their newlines.

        Raises:
            ConfigError: there is no such job.
        """
        rest = b""
        for chunk in self._file(self._details(job_id), RESULTS_FILE):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"

    def cancel(self, job_id: str) -> bool:
        """Stop a job; returns whether it was running.

        Raises:
            ConfigError: there is no such job.
        """
        details = self._details(job_id)
        if details.status not in {JobStatus.PENDING, JobStatus.RUNNING}:
            return False
        return bool(self._client.stop_job(job_id))

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> SubmittedJob:
        """Wait until a job has ended.

        Raises:
            TaskError: it has not after `timeout_s`.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := self.get(job_id)).is_final:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TaskError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(0.5)
        return job

    def _details(self, job_id: str) -> JobDetails:
        with contextlib.suppress(RuntimeError):
            details = self._client.get_job_info(job_id)
            if _is_ours(details):
                return details
        raise ConfigError(
            f"no job {job_id!r} on this cluster; `agentcloud list` shows them", where=self._where
        )

    def _file(self, details: JobDetails, name: str) -> Iterator[bytes]:
        if details.driver_node_id is None:
            return
        query = urllib.parse.urlencode(
            {
                "node_id": details.driver_node_id,
                "filename": f"{JOBS_FOLDER}/{details.submission_id}/{name}",
                "lines": -1,
            }
        )
        # ray.util.state.get_log asks the same, but only of a cluster whose GCS it can reach.
        try:
            with self._client._do_request(
                "GET", f"/api/v0/logs/file?{query}", stream=True
            ) as reply:
                if reply.status_code == requests.codes.ok:
                    yield from reply.iter_content(chunk_size=None)
                elif "not found" not in reply.text.lower():
                    raise TaskError(f"cannot fetch {name} ({' '.join(reply.text.split())[:300]})")
        except requests.RequestException as error:
            raise TaskError(f"cannot fetch {name} ({_line(error)})") from None


def _is_ours(details: JobDetails) -> bool:
    return bool((details.metadata or {}).get(_LABEL) == "job")


def _job(details: JobDetails, record: dict[str, Any] | None) -> SubmittedJob:
    return SubmittedJob(
        job_id=details.submission_id,
        agent=(details.metadata or {}).get("agent", ""),
        status=str(details.status.value),
        started_unix_s=_seconds(details.start_time),
        ended_unix_s=_seconds(details.end_time),
        message=details.message,
        record=record,
    )


def _seconds(unix_ms: int | None) -> float | None:
    return unix_ms / 1000 if unix_ms else None


@contextlib.contextmanager
def _ray_address(address: str | None) -> Iterator[None]:
    # Ray lets RAY_ADDRESS win over the argument; an address that a person named should win.
    before = os.environ.get("RAY_ADDRESS")
    if address is not None and before is not None:
        os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def _why_not(error: Exception) -> str:
    text = _line(error)
    if "401" in text or "403" in text or "oken" in text:
        return (
            "the cluster does not accept our token; copy the head's ~/.ray/auth_token to this "
            "machine, or point RAY_AUTH_TOKEN_PATH at it"
        )
    return (
        f"no Ray cluster is there ({text}); start one with `ray start --head`, or name its "
        "dashboard: --address http://HOST:8265"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
