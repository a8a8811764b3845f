"""A real PostgreSQL of a test's own, on a Unix socket in a folder that goes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import NullPool, create_engine, text

_FOUND: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BIN: Final = _FOUND[-1] if _FOUND else None


@contextmanager
def postgres() -> Iterator[str]:
    """A server for as long as the block lasts; its URL as SQLAlchemy's."""
    assert BIN is not None
    folder = Path(tempfile.mkdtemp(prefix="agentcloud-pg-"))
    account = _account()
    if account:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    try:
        _run([*account, BIN / "initdb", "-D", data, "-A", "trust", "-U", "test", "--no-sync"])
        options = f"-c listen_addresses='' -k {folder}"
        _run(
            [
                *account,
                BIN / "pg_ctl",
                "-D",
                data,
                "-w",
                "-l",
                folder / "log",
                "-o",
                options,
                "start",
            ]
        )
        try:
            yield f"postgresql+psycopg://test@/postgres?host={folder}"
        finally:
            _run([*account, BIN / "pg_ctl", "-D", data, "-m", "fast", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restart(server: str) -> None:
    """End a server as a crash would, and start it again."""
    assert BIN is not None
    folder = Path(server.partition("host=")[2])
    # With a log of its own: it would keep our pipe open.
    where: list[str | Path] = ["-D", folder / "data", "-l", folder / "log"]
    _run([*_account(), BIN / "pg_ctl", *where, "-w", "-m", "immediate", "restart"])


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """A database of a test's own on a server; its URL."""
    name = f"t{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.replace("/postgres?", f"/{name}?")
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        admin.dispose()


def _account() -> list[str]:
    # The server refuses to be root; Debian's package made a user for it.
    return ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)
