"""Jobs that wait for others: until all ended well, not at all when one did not."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentcloud.cluster.errors import ConfigError, TaskCancelled, TaskError
from agentcloud.tasks.after import looking, wait_for_jobs
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import LedgerJob
from agentcloud.tasks.spec import JobRecord, JobState
from tests.tasks.conftest import hosted_fleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_KEY", "never-used")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # This process may be on the Ray of other tests.
    monkeypatch.setattr("agentcloud.tasks.after.ray.is_initialized", lambda: False)
    path = tmp_path / "fleet.yaml"
    path.write_text(
        yaml.safe_dump(hosted_fleet("http://127.0.0.1:9") | {"store": f"sqlite:///{tmp_path}/s.db"})
    )
    return path


@pytest.fixture
def ledger(fleet: Path, tmp_path: Path) -> Any:
    with closing(Ledger(f"sqlite:///{tmp_path}/s.db")) as ledger:
        yield ledger


def end(ledger: Ledger, job_id: str, state: JobState = JobState.DONE, failed: int = 0) -> None:
    told = JobRecord(job_id, "agent.py:a", state, "out.jsonl", total=3, failed=failed).to_dict()
    ledger.end(job_id, 1, str(state), told, "0")


def wait(fleet: Path, *job_ids: str, sleep: Callable[[float], object]) -> list[str]:
    told: list[str] = []
    with looking(None, fleet) as look:
        wait_for_jobs(job_ids, look, on_wait=told.append, sleep=sleep)
    return told


def never(_seconds: float) -> None:
    raise AssertionError("there was nothing to wait for")


def test_it_waits_until_the_last_has_ended_and_says_for_which(fleet: Path, ledger: Ledger) -> None:
    for job_id in ("j1", "j2", "j3"):
        ledger.begin(job_id, "{}", {})
    end(ledger, "j2")
    events = [lambda: None, lambda: end(ledger, "j3"), lambda: end(ledger, "j1")]
    told = wait(fleet, "j1", "j2", "j3", sleep=lambda _: events.pop(0)())
    assert told == ["waiting for j1, j3", "waiting for j1"]
    assert events == []
    assert wait(fleet, "j1", "j2", "j3", sleep=never) == []


@pytest.mark.parametrize(
    ("state", "failed", "why"),
    [
        (JobState.DONE, 2, r"2 of its tasks failed; .* resume j2 --retry-failed\)"),
        (JobState.FAILED, 0, r"it failed; go on with that one \(agentcloud resume j2\)"),
        (JobState.STOPPED, 0, "it was stopped"),
        (JobState.CANCELLED, 1, "it was cancelled"),
    ],
)
def test_one_that_did_not_end_well_is_told_without_waiting_for_the_rest(
    fleet: Path, ledger: Ledger, state: JobState, failed: int, why: str
) -> None:
    for job_id in ("j1", "j2"):
        ledger.begin(job_id, "{}", {})
    end(ledger, "j2", state, failed)
    with pytest.raises(TaskError, match=f"not started: it was to run after job j2, and {why}"):
        wait(fleet, "j1", "j2", sleep=never)


def test_a_job_that_is_gone_on_with_is_waited_for_again(fleet: Path, ledger: Ledger) -> None:
    ledger.begin("j1", "{}", {})
    end(ledger, "j1", JobState.FAILED)
    epoch = ledger.begin("j1", "{}", {})

    def ends(_seconds: float) -> None:
        ledger.end("j1", epoch, "done", {"tasks": {"failed": 0}}, "0")

    assert wait(fleet, "j1", sleep=ends) == ["waiting for j1"]


def test_an_unknown_job_is_refused(fleet: Path, ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="no job 'jx' in its ledger; `agentcloud jobs`"):
        wait(fleet, "jx", sleep=never)


def test_one_that_has_not_begun_is_waited_for_and_waiting_can_be_cancelled() -> None:
    looks: list[str] = []

    def not_begun(job_id: str) -> LedgerJob | None:
        looks.append(job_id)
        return None

    def cancelled(_seconds: float) -> None:
        raise TaskCancelled("cancelled before it began")

    with pytest.raises(TaskCancelled):
        wait_for_jobs(["j1"], not_begun, on_wait=lambda _: None, sleep=cancelled)
    assert looks == ["j1"]
