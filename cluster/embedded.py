"""The two small models that ship with the package, so that nothing need be fetched.

A model whose source is written ``embedded:NAME`` in fleet.yaml is one of these.
"""

from importlib.resources import files
from pathlib import Path

from agentcloud.cluster.errors import ConfigError

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_MODELS: tuple[str, ...] = ("triage-small", "triage-large")
"""What ships, the cheaper one first; `scripts/train_embedded.py` makes them."""


def embedded_model_path(name: str) -> Path:
    """The folder of an embedded model, as vLLM loads it.

    Args:
        name: ``embedded:triage-small``, or ``triage-small`` alone.

    Raises:
        ConfigError: no such model ships, or its files are missing.
    """
    known = ", ".join(EMBEDDED_PREFIX + model for model in EMBEDDED_MODELS)
    bare = name.removeprefix(EMBEDDED_PREFIX)
    if bare not in EMBEDDED_MODELS:
        raise ConfigError(f"no embedded model {name!r}: write one of {known}")
    folder = Path(str(files("agentcloud.cluster.data") / "models" / bare))
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"the files of {EMBEDDED_PREFIX}{bare} are missing from {folder}: install agentcloud "
            "again, or make them with scripts/train_embedded.py"
        )
    return folder
