"""The scheduler's store behind a thread that writes it."""

from __future__ import annotations

from agentcloud.cluster.group_writer import GroupWriter
from agentcloud.cluster.journal import Batch, merged
from agentcloud.cluster.store import Store


class StoreWriter(GroupWriter[Batch]):
    """Group commit of batches; meanwhile no paid lease reaches its holder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        super().__init__(
            lambda batches, again: store.write(merged(batches), again=again), name="store-writer"
        )

    def close(self) -> None:
        """Write what is there, then end."""
        super().close()
        self._store.close()
