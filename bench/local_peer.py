"""Ray Serve LLM over its own handle, for bench/local.py; runs in the peers' environment.

`.venv-peers/bin/python -m bench.local_peer FOLDER`: as bench/local_contender.py. One replica on
this machine's CPU with the engine settings of the other contenders; the vLLM is the one Ray pins.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from bench.rounds import MODEL, serve


def deploy(folder: str) -> Any:
    """Start the deployment; its handle."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    env = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    os.environ.update(env)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=4)
    config = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": folder},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 1024},
        engine_kwargs={
            "dtype": "bfloat16",
            "max_model_len": 1024,
            "max_num_seqs": 256,
            "enforce_eager": True,
            "distributed_executor_backend": "mp",
            "kv_cache_memory_bytes": 1 << 28,
        },
        runtime_env={"env_vars": env},
        log_engine_metrics=False,
    )
    handle = ray_serve.run(build_llm_deployment(config), name="peer", route_prefix=None)
    return handle.options(stream=True)


def undeploy() -> None:
    """End Serve and Ray."""
    import ray
    from ray import serve as ray_serve

    ray_serve.shutdown()
    ray.shutdown()


async def main(folder: str) -> None:
    """Run rounds until stdin ends."""
    handle = await asyncio.to_thread(deploy, folder)
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    async def send(params: dict[str, Any]) -> int:
        async for answer in handle.chat.remote(ChatCompletionRequest(**params)):
            return int(answer.usage.completion_tokens)
        raise RuntimeError("no answer")

    async def stream(params: dict[str, Any]) -> AsyncIterator[str]:
        request = ChatCompletionRequest(**params, stream=True)
        async for chunks in handle.chat.remote(request):
            for chunk in [chunks] if isinstance(chunks, str) else chunks:
                for line in chunk.splitlines():
                    if line.startswith("data: {"):
                        choices = json.loads(line.removeprefix("data: "))["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            yield "content_block_delta"

    await serve({"ray_serve": (send, stream)})
    # Else its dashboard's agents outlive it.
    await asyncio.to_thread(undeploy)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
