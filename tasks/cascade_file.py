"""A cascade as a small file: what `agentcloud tune` writes and `run --cascade` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentcloud.cluster.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from agentcloud.agents.cascade import Cascade, Check


class AgreementSetting(BaseModel):
    """As `agents.agreement`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: Annotated[int, Field(ge=2)] = 3
    at_least: Annotated[float, Field(ge=0, le=1)] = 0.67
    temperature: Annotated[float, Field(gt=0)] | None = None


class CascadeSetting(BaseModel):
    """What `tier="auto"` is in a job, and what its asks use that name no tier of their own.

    Attributes:
        tiers: tiers or models, cheapest first.
        logprob: the least mean log-probability; null: not checked.
        agreement: samples that must agree; null: not checked.
        measure: take the signals, refuse nothing: the runs of `agentcloud tune`.
        tuned: what the choice was made on, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tiers: Annotated[tuple[str, ...], Field(min_length=1)]
    logprob: Annotated[float, Field(le=0)] | None = None
    agreement: AgreementSetting | None = None
    measure: bool = False
    tuned: dict[str, Any] | None = None

    def to_cascade(self) -> Cascade:
        """As agents use it.

        Raises:
            AgentError: it names a tier twice.
        """
        # Here: the command line reads this module for its help, and agents take a while to load.
        from agentcloud.agents.cascade import Cascade, agreement, logprob

        checks: list[Check] = []
        if self.logprob is not None:
            checks.append(logprob(self.logprob))
        if (sampled := self.agreement) is not None:
            checks.append(agreement(sampled.n, sampled.at_least, temperature=sampled.temperature))
        return Cascade(self.tiers, checks, measure=self.measure)


def load_cascade(path: Path) -> CascadeSetting:
    """Read a cascade's file, JSON or YAML.

    Raises:
        ConfigError: it cannot be read, or holds an unknown key or a bad value.
    """
    where = str(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot read it ({error.strerror}); `agentcloud tune` writes one", where=where
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError("is neither JSON nor YAML", where=where) from None
    try:
        setting = CascadeSetting.model_validate(data)
        setting.to_cascade()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        known = ", ".join(CascadeSetting.model_fields)
        hint = f"; known here: {known}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"{key}: {first['msg']}{hint}", where=where) from None
    except AgentError as error:
        raise ConfigError(str(error), where=where) from None
    return setting


def save_cascade(path: Path, setting: CascadeSetting) -> None:
    """Write a cascade's file.

    Raises:
        ConfigError: it cannot be written.
    """
    data = setting.model_dump(mode="json", exclude={"measure"})
    try:
        path.write_text(json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"cannot write it ({error.strerror}); choose another --output", where=str(path)
        ) from None
