"""Ends what a replica leaves behind: a watchdog process beside the actor.

Neither vLLM's engine process nor its workers die with an actor that is killed. The reaper holds
the reading end of a pipe that only the actor has open; when the actor dies, by whatever means,
the pipe ends, and the reaper kills every process that carries the actor's mark in its
environment. The mark finds orphans however they were started and whatever became their parent.

Run by its file's path with the mark as its argument; it imports nothing but the standard library,
so that it is there at once. Linux only, as the engine is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

#: Environment variable that marks a replica's processes.
MARK = "AGENTCLOUD_REPLICA_MARK"
_PASSES = 20
_PAUSE_S = 0.1


def start_reaper() -> subprocess.Popen[bytes]:
    """Mark this process's future children, and have them killed when this process is gone.

    Keep the returned object; `end_reaper` has the same effect as dying.
    """
    mark = os.environ[MARK] = uuid.uuid4().hex
    return subprocess.Popen(  # noqa: S603  # our own file
        [sys.executable, "-I", "-S", __file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Its own session: a signal to the actor's group must not take the watchdog along.
        start_new_session=True,
    )


def end_reaper(reaper: subprocess.Popen[bytes]) -> None:
    """Have the marked processes killed now; returns when they are gone."""
    if reaper.stdin is not None:
        reaper.stdin.close()
    reaper.wait()


def marked(mark: str) -> list[int]:
    """Pids of the processes that carry the mark, this one excepted."""
    needle = f"{MARK}={mark}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        # It may end between the listing and the reading, or be someone else's.
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and int(entry.name) != os.getpid()
                and needle in (entry / "environ").read_bytes().split(b"\0")
            ):
                pids.append(int(entry.name))
    return pids


def reap(mark: str) -> None:
    """Kill the marked processes, again until none is left: one may be forking right now."""
    for _ in range(_PASSES):
        pids = marked(mark)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def main() -> None:
    """Wait for the end of the pipe, then reap."""
    # A node that shuts down asks politely first; the watchdog goes last.
    for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(polite, signal.SIG_IGN)
    sys.stdin.buffer.read()
    reap(sys.argv[1])


if __name__ == "__main__":
    main()
