"""What a fleet actor that Ray has restarted goes on with.

It is kept in the store of Ray's GCS, as JSON: there it lives as long as the cluster does, and a
new cluster begins without it. Keys of accounts are not in it, only where they are found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Final

from pydantic import BaseModel
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_models import LocalModel, Section

_FLEET: Final = "fleet"
#: Replicas have an entry each: one that comes or goes costs the same in a fleet of any size.
_REPLICA: Final = "replica:"


class ModelMemory(Section):
    """One model.

    Attributes:
        settings: those in force.
        proven: those that last served, to go back to.
        pinned: its number of replicas, where it was set by hand.
        is_leaving: it is no longer in fleet.yaml, and its replicas are being drained.
    """

    settings: LocalModel
    proven: LocalModel | None = None
    pinned: int | None = None
    is_leaving: bool = False


class FleetMemory(Section):
    """The fleet, apart from its replicas.

    Attributes:
        actor: id of the fleet's actor, the same over its restarts.
        config: fleet.yaml, as last applied.
        where: how errors name its file.
        models: those of `config`, and those that leave.
    """

    actor: str
    config: FleetConfig
    where: str
    models: dict[str, ModelMemory]


class Memory:
    """Remembers a fleet from its start to its stop.

    Args:
        kept: where, by key.
    """

    def __init__(self, kept: MutableMapping[str, str] | None = None) -> None:
        self._kept = _ClusterStore() if kept is None else kept

    def keep(self, fleet: FleetMemory) -> None:
        """Remember this from now on."""
        self._kept[_FLEET] = _dumped(fleet)

    def recall(self, actor: str) -> FleetMemory | None:
        """What an actor has kept; None: it was not started, or it was stopped."""
        told = self._kept.get(_FLEET)
        fleet = None if told is None else FleetMemory.model_validate(json.loads(told))
        return fleet if fleet is not None and fleet.actor == actor else None

    def keep_replica(self, name: str, settings: LocalModel) -> None:
        """Remember a replica, before anything of it is started, and its settings."""
        self._kept[name] = _dumped(settings)

    def forget_replica(self, name: str) -> None:
        """Nothing of a replica is left."""
        self._kept.pop(name, None)

    def replicas(self) -> dict[str, LocalModel]:
        """Every replica of which something may be left, with its settings."""
        return {
            name: LocalModel.model_validate(json.loads(told))
            for name, told in sorted(self._kept.items())
            if name.startswith(_REPLICA)
        }

    def clear(self) -> None:
        """Forget everything: the fleet is stopped."""
        for key in list(self._kept):
            del self._kept[key]

    def __repr__(self) -> str:
        return f"<Memory {', '.join(sorted(self._kept)) or 'of nothing'}>"


def _dumped(what: BaseModel) -> str:
    # Not pydantic's own JSON, which has no infinity.
    return json.dumps(what.model_dump(mode="json"))


class _ClusterStore(MutableMapping[str, str]):
    """The key-value store of the GCS, in a namespace of ours."""

    _OURS: Final = b"agentcloud-fleet"

    def __getitem__(self, key: str) -> str:
        value = _internal_kv_get(key, namespace=self._OURS)
        if value is None:
            raise KeyError(key)
        return str(value, "utf-8")

    def __setitem__(self, key: str, value: str) -> None:
        _internal_kv_put(key, value, overwrite=True, namespace=self._OURS)

    def __delitem__(self, key: str) -> None:
        if not _internal_kv_del(key, namespace=self._OURS):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (str(key, "utf-8") for key in _internal_kv_list("", namespace=self._OURS))

    def __len__(self) -> int:
        return sum(1 for _ in self)
