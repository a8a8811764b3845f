"""The `agentcloud` command in processes of their own, forked from one that has imported it.

Each start of the installed command imports for two seconds, which dozens of tests of one wrong
flag each need not wait for.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.conftest import unmarked
from tests.tasks.cluster import Outcome

_IMPORTED = ("agentcloud.tasks.cli", "agentcloud.tasks.jobs", "agentcloud.tasks.submission")


def server() -> ForkServerContext:
    """The process that has imported; it is started once and ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_IMPORTED])
    with unmarked():
        forkserver.ensure_running()
    return context


def quick_cli(*args: str, cwd: Path, env: dict[str, str], timeout_s: float = 120) -> Outcome:
    """Run `agentcloud ...`, as `tests.tasks.cluster.cli` does."""
    context = server()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "out", Path(folder) / "err"
        process = context.Process(target=_main, args=(args, cwd, env, *files))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise RuntimeError(f"agentcloud {' '.join(args)} did not end within {timeout_s:g} s")
        out, err = (file.read_text() for file in files)
    return Outcome(process.exitcode, out, err)


def _main(args: tuple[str, ...], cwd: Path, env: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["agentcloud", *args]
    from agentcloud.tasks.cli import main

    main()
