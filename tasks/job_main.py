"""Driver of a submitted job: `python -m agentcloud.tasks.job_main SPEC`, run by Ray.

It mirrors the job's supervisor: keeps its record beside the results, prints progress, and turns
SIGTERM (Ray's way to stop a job) into a cancellation. Exit status: 0 every task is done; 1 some
failed, or the job stopped; 2 the job could not begin.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray

from agentcloud.cluster.errors import AgentCloudError, ConfigError, TaskCancelled
from agentcloud.cluster.lifecycle import connect_ray
from agentcloud.cluster.logs import configure_logs
from agentcloud.tasks.after import look_on_cluster, wait_for_jobs
from agentcloud.tasks.jobs import Job, preflight, start_job
from agentcloud.tasks.render import progress_line
from agentcloud.tasks.spec import JobRecord, JobSpec, JobState
from agentcloud.tasks.submission import JOBS_FOLDER, RECORD_FILE, RESULTS_FILE

#: How often the record on disk is renewed, and how often a line is printed, seconds.
RECORD_EVERY_S = 0.5
PRINT_EVERY_S = 5.0


def main(argv: list[str]) -> int:
    """Run the job that the one argument describes."""
    try:
        return _run(JobSpec.model_validate_json(argv[0]))
    except AgentCloudError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        ray.shutdown()


def _run(spec: JobSpec) -> int:
    configure_logs(job=spec.job_id)
    stop = threading.Event()
    info = connect_ray()
    # Now, for Ray has put its own in the place of any earlier one: that would kill the supervisor
    # before it has told the ledger how the job ended.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if info.session_dir is None:
        raise ConfigError("a job's driver must run on a node of its cluster")
    folder = info.session_dir / "logs" / JOBS_FOLDER / spec.job_id
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec.model_copy(
        update={"input": Path.cwd() / spec.input, "output": folder / RESULTS_FILE}
    )
    if spec.after:
        _wait_for_others(spec, folder / RECORD_FILE, stop)
    job = start_job(spec, total=preflight(spec).total, detached=True)
    try:
        record = _mirror(job, folder / RECORD_FILE, stop)
    finally:
        job.close()
    print(progress_line(record), flush=True)
    if record.detail:
        print(f"{record.label}: {record.detail}", file=sys.stderr, flush=True)
    return 0 if record.state is JobState.DONE and record.failed == 0 else 1


def _wait_for_others(spec: JobSpec, path: Path, stop: threading.Event) -> None:
    record = JobRecord(spec.job_id, spec.agent, JobState.PENDING, str(spec.output), total=0)

    def on_wait(line: str) -> None:
        print(line, flush=True)
        _keep(replace(record, detail=line), path)

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise TaskCancelled("cancelled before it began")

    try:
        wait_for_jobs(spec.after, look_on_cluster, on_wait=on_wait, sleep=sleep)
    except AgentCloudError as error:
        state = JobState.CANCELLED if isinstance(error, TaskCancelled) else JobState.FAILED
        _keep(replace(record, state=state, reason="after", detail=str(error)), path)
        raise


def _mirror(job: Job, path: Path, stop: threading.Event) -> JobRecord:
    printed_s = 0.0
    cancelled = False
    while True:
        record = job.record()
        _keep(record, path)
        if record.state.is_final:
            return record
        if stop.is_set() and not cancelled:
            cancelled = True
            print("stopping: calls in flight are cancelled, what is done is kept", flush=True)
            job.cancel()
        if time.monotonic() - printed_s > PRINT_EVERY_S:
            printed_s = time.monotonic()
            print(progress_line(record), flush=True)
        if cancelled:
            time.sleep(0.05)
        else:
            stop.wait(RECORD_EVERY_S)


def _keep(record: JobRecord, path: Path) -> None:
    # Replaced whole: a reader never sees half a record.
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(record.to_dict()))
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
