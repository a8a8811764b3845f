"""Compiles the scheduler's pure core with mypyc; all else of the package is in pyproject.toml.

An installed package decides about twice as fast (`make bench`: scheduler). Nothing but speed
depends on it: an editable install, a machine without a C compiler, and AGENTCLOUD_COMPILE=0 run
the same files as Python.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
#: What one decision goes through. Not what travels between processes (contracts, decisions, former,
#: demand): mypyc's classes that are frozen cannot be unpickled (tests/cluster/test_scheduler.py).
CORE = """
buckets budget burden chains circuit clock demand_book dispatch endpoint explain fairness hedging
hosted_cache lateness leases limits line parking policy pool predict prefill prefix registry
rerouting retry_quota scheduler shortage standing usual verdict waiting warming weighing
"""
#: mypyc takes names of modules from their paths: the same links that `make check` uses.
LINKS = ROOT / ".types"


def is_compiled() -> bool:
    """Whether a wheel is built, and can be compiled here."""
    builds = not {"bdist_wheel", "build_ext"}.isdisjoint(sys.argv)
    compiler = os.environ.get("CC", "cc").split()[0]
    return (
        builds
        and os.environ.get("AGENTCLOUD_COMPILE", "1") != "0"
        and shutil.which(compiler) is not None
    )


def core() -> list[Extension]:
    """The compiled modules."""
    from mypyc.build import mypycify

    (LINKS / "agentcloud").mkdir(parents=True, exist_ok=True)
    link = LINKS / "agentcloud" / "cluster"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(Path("../../cluster"))
    os.environ["MYPYPATH"] = str(LINKS)
    modules: list[Extension] = mypycify(
        [
            "--config-file=",  # Its plugins are not there where a wheel is built.
            "--namespace-packages",
            "--explicit-package-bases",
            "--ignore-missing-imports",
            "--follow-imports=silent",
            *(f".types/agentcloud/cluster/{name}.py" for name in CORE.split()),
        ],
        group_name="agentcloud",
        opt_level=os.environ.get("AGENTCLOUD_OPTIMIZE", "2"),
        debug_level="0",
    )
    for module in modules:
        # Without Python's headers all of them fail alike, and the core runs as Python.
        module.optional = True
    return modules


setup(ext_modules=core() if is_compiled() else [])
