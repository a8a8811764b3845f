"""fleet.yaml's model -> how its engine is started. Pure: no vllm, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.embedded import EMBEDDED_PREFIX, embedded_model_path
from agentcloud.cluster.errors import ConfigError

_GIB = 1 << 30

#: Environment of every engine: weights are local, nothing is reported to anyone.
_QUIET_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything that one engine needs to start.

    Attributes:
        model: the name it serves.
        args: vLLM's server arguments by their Python names.
        env: environment of the engine's processes.
        forks: its processes are forked from a server that has imported vllm (CPU only: a CUDA
            process must not be forked).
        kv_events: it tells what its KV cache holds.
    """

    model: str
    args: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    forks: bool = False
    kv_events: bool = False

    @property
    def processes(self) -> int:
        """How many workers the model is split over."""
        return int(self.args["tensor_parallel_size"]) * int(self.args["pipeline_parallel_size"])


def model_folder(path: str) -> Path:
    """The folder that a `path:` of fleet.yaml names; `embedded:NAME` is package data."""
    if path.startswith(EMBEDDED_PREFIX):
        return embedded_model_path(path)
    return Path(path).expanduser()


#: One worker, in the engine's own process: a third more requests a second than `mp`, whose engine
#: spins on a core while its worker computes. By its path, because vLLM turns `uni` into `mp` on a
#: CPU: it cannot set that process's OpenMP threads. We do, by its environment.
_IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def engine_settings(
    name: str,
    model: LocalModel,
    *,
    tensor_parallel: int,
    cores: Sequence[int],
) -> EngineSettings:
    """Derive an engine's settings.

    Args:
        name: the model's name in fleet.yaml, served as such.
        model: its section.
        tensor_parallel: the degree that plan.py chose (`auto` is resolved before).
        cores: ids of the CPU cores at hand; used on CPU only.

    Raises:
        ConfigError: more CPU processes than cores, so that threads cannot be bound.
    """
    processes = tensor_parallel * model.pipeline_parallel
    args: dict[str, Any] = {
        "model": str(model_folder(model.path)),
        "served_model_name": [name],
        "dtype": model.dtype,
        "max_model_len": model.context_tokens,
        "max_num_seqs": model.max_concurrency,
        "tensor_parallel_size": tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        "enable_auto_tool_choice": True,
        "tool_call_parser": model.tool_parser,
        "enable_prompt_tokens_details": True,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        # A grammar that allows blanks lets a weak model fill its whole answer with them.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    env = dict(_QUIET_ENV)
    if model.gpu is None:
        args |= {
            "enforce_eager": True,
            "distributed_executor_backend": "mp" if processes > 1 else _IN_PROCESS,
            # Explicit, because the default claims a share of the machine's whole memory.
            "kv_cache_memory_bytes": int(model.kv_cache_gib * _GIB),
        }
        env |= _threads(name, processes, cores)
    elif processes > 1:
        # Ray's executor puts its workers into the placement group of the actor that starts it.
        args["distributed_executor_backend"] = "ray"
    args |= model.engine_args
    env |= model.env
    own = {"kv_events_config", "enable_prefix_caching"} & model.engine_args.keys()
    return EngineSettings(
        model=name,
        args=args,
        env=env,
        forks=model.gpu is None,
        kv_events=model.kv_events and not own,
    )


def _threads(name: str, processes: int, cores: Sequence[int]) -> dict[str, str]:
    """How the engine's processes use the CPU cores.

    One process is left unbound: several replicas may share the machine, and binding would pin
    them all to the same cores. It takes half of them: its front and its scheduler need the rest,
    and a thread that waits for a core it was promised holds up all others (15 times slower,
    measured on 2 cores). Several processes must be told apart, or vLLM refuses; their threads are
    bound by their environment, so they are spawned and not forked.
    """
    if processes == 1:
        return {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            "OMP_NUM_THREADS": str(max(1, len(cores) // 2)),
        }
    if len(cores) < processes:
        raise ConfigError(
            f"{processes} engine processes need a CPU core each and this node offers "
            f"{len(cores)}; lower tensor_parallel or pipeline_parallel",
            where=f"fleet.yaml: models.{name}",
        )
    share = len(cores) // processes
    runs = [cores[rank * share : (rank + 1) * share] for rank in range(processes)]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, run)) for run in runs),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
