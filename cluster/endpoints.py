"""fleet.yaml -> the endpoints that the scheduler is told of, checked before anything starts."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from agentcloud.cluster.catalog import HostedEntry, load_catalog
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_models import HostedModel, LocalModel
from agentcloud.cluster.config_rules import Batching
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec, Feature
from agentcloud.cluster.engine_settings import model_folder
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.plan_data import model_shape

#: What vLLM's Messages handler does for a text model.
_LOCAL_FEATURES = frozenset(
    {
        Feature.TOOLS,
        Feature.FORCED_TOOLS,
        Feature.STRICT_TOOLS,
        Feature.JSON_SCHEMA,
        Feature.SAMPLING,
        Feature.THINKING_DISABLED,
        Feature.MEAN_LOGPROB,
    }
)

_BOUNDLESS = 1 << 30


def replica_name(model: str, index: int) -> str:
    """Name of a replica: its actor, its endpoint, and what the dashboard shows."""
    return f"replica:{model}:{index}"


def replica_of(name: str) -> tuple[str, int]:
    """Model and index of a replica, by its name."""
    model, _, index = name.removeprefix("replica:").rpartition(":")
    return model, int(index)


def hosted_name(account: str, model: str) -> str:
    """Name of a hosted endpoint."""
    return f"{account}/{model}"


def replica_spec(
    model: str,
    index: int,
    settings: LocalModel,
    *,
    context_tokens: int,
    gpus: int,
    kv_tokens: int | None = None,
) -> EndpointSpec:
    """The endpoint that a replica is.

    Args:
        model: its name in fleet.yaml.
        index: which of the model's replicas.
        settings: its section.
        context_tokens: as its engine said once it was up.
        gpus: GPUs it occupies.
        kv_tokens: as its engine said once it was up.
    """
    hourly = settings.usd_per_gpu_hour
    return EndpointSpec(
        name=replica_name(model, index),
        kind=EndpointKind.LOCAL,
        model=model,
        tier=settings.tier,
        context_tokens=context_tokens,
        max_output_tokens=settings.max_output_tokens or context_tokens,
        max_concurrency=settings.max_concurrency,
        features=_LOCAL_FEATURES,
        usd_per_hour=None if hourly is None else hourly * Decimal(max(gpus, 1)),
        kv_tokens=kv_tokens,
    )


def guessed_spec(model: str, settings: LocalModel) -> EndpointSpec:
    """The endpoint that a model's replica will be, as far as that is known before one started.

    Where the context is not known it is taken to be boundless: a call that does not fit then waits
    until a replica is there and says so.
    """
    context_tokens = settings.context_tokens
    if context_tokens is None:
        try:
            context_tokens = model_shape(str(model_folder(settings.path))).context_tokens
        except ConfigError:
            context_tokens = _BOUNDLESS
    degree = 1 if settings.tensor_parallel == "auto" else settings.tensor_parallel
    return replica_spec(
        model,
        0,
        settings,
        context_tokens=context_tokens,
        gpus=degree * settings.pipeline_parallel if settings.gpu else 0,
    )


def hosted_specs(config: FleetConfig) -> list[EndpointSpec]:
    """The endpoints under `hosted:`, completed from the catalogue.

    Raises:
        ConfigError: a model is neither in the catalogue nor described in fleet.yaml.
    """
    catalog = load_catalog().with_overrides(config.hosted)
    specs = []
    for name, hosted in config.hosted.items():
        spec = _hosted_spec(catalog.entries[name], hosted, config)
        specs.append(spec)
        if hosted.batch:
            specs.append(_batch_spec(spec, config.batch))
    return specs


def check_fleet(config: FleetConfig, *, where: str = "fleet.yaml") -> None:
    """What can be known to be wrong before anything starts: folders, keys, hosted models.

    Raises:
        ConfigError: naming file, key and remedy.
    """
    for name, model in config.models.items():
        check_model_folder(model_folder(model.path), f"{where}: models.{name}.path")
    for name in {hosted.account for hosted in config.hosted.values()}:
        config.accounts[name].key(f"{where}: accounts.{name}")
    check_fallbacks(config, where=where)
    if config.alarms.enabled:
        config.alarms.webhook(f"{where}: alarms.webhook_url_env")


def check_fallbacks(config: FleetConfig, *, where: str = "fleet.yaml") -> None:
    """See that `fallbacks:` names only what there is.

    Raises:
        ConfigError: a name is no tier and no model of this fleet.
    """
    specs = hosted_specs(config)
    known = {model.tier for model in config.models.values()} | {spec.tier for spec in specs}
    known |= config.models.keys() | config.hosted.keys()
    for name, after in config.fallbacks.items():
        for each in (name, *after):
            if each not in known:
                raise ConfigError(
                    f"{each!r} is no tier or model of this fleet (there are: "
                    f"{', '.join(sorted(known))}); take it out or add a model of it",
                    where=f"{where}: fallbacks.{name}",
                )


def _hosted_spec(entry: HostedEntry, hosted: HostedModel, config: FleetConfig) -> EndpointSpec:
    return EndpointSpec(
        name=hosted_name(hosted.account, entry.name),
        kind=EndpointKind.HOSTED,
        model=entry.name,
        tier=entry.tier,
        context_tokens=entry.context_tokens,
        max_output_tokens=entry.max_output_tokens,
        max_concurrency=hosted.max_concurrency or config.accounts[hosted.account].max_concurrency,
        account=hosted.account,
        family=entry.family,
        features=entry.features,
        min_cache_tokens=entry.min_cache_tokens or None,
    )


def _batch_spec(spec: EndpointSpec, batch: Batching) -> EndpointSpec:
    """A hosted model again, by Message Batches: cheaper, slower, with limits of its own."""
    return replace(
        spec,
        name=f"{spec.name}:batch",
        family=f"{spec.family}:batch",
        max_concurrency=batch.max_waiting,
        batch=True,
        min_deadline_s=batch.min_deadline_s,
        timeout_s=batch.timeout_s,
        prior_s=batch.predicted_s,
    )


def check_model_folder(folder: Path, where: str) -> None:
    """See that a folder holds a model.

    Raises:
        ConfigError: it does not; `where` names the setting.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"no model folder {folder}; it must hold config.json, weights and tokenizer",
            where=where,
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no config.json, so it is no model folder", where=where)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"{folder} holds no weights (*.safetensors)", where=where)
