"""A Ray of our own is for this machine alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

_LISTENING = """
import json, psutil
from agentcloud.cluster.ray_session import start_local_ray

start_local_ray(dashboard=True, num_cpus=1)
import ray
assert ray.get(ray.remote(lambda: 7).remote()) == 7
processes = psutil.Process().children(recursive=True)
found = {
    each.laddr.ip
    for process in processes
    for each in process.net_connections("inet")
    if each.status == psutil.CONN_LISTEN
}
ray.shutdown()
print(json.dumps([len(processes), sorted(found)]))
"""


def test_a_local_ray_listens_on_loopback_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LISTENING], capture_output=True, text=True, timeout=100, check=True
    )
    processes, addresses = json.loads(done.stdout.splitlines()[-1])
    assert processes > 3
    assert addresses
    assert set(addresses) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
