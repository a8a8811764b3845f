"""The scheduler's store behind a thread that writes it."""

from __future__ import annotations

from collections.abc import Sequence

from agentcloud.cluster.fault_points import reached
from agentcloud.cluster.group_writer import GroupWriter
from agentcloud.cluster.journal import Batch, merged
from agentcloud.cluster.store import Store


class StoreWriter(GroupWriter[Batch]):
    """Group commit of batches; meanwhile no paid lease reaches its holder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        super().__init__(self._write_all, name="store-writer")

    def _write_all(self, batches: Sequence[Batch], again: bool) -> None:
        batch = merged(batches)
        if batch.granted:
            reached("before-grant")
        self._store.write(batch, again=again)
        if batch.granted:
            reached("after-grant")

    def close(self) -> None:
        """Write what is there, then end."""
        super().close()
        self._store.close()
