"""Flags of vLLM, mlx_lm and llama.cpp that have no equal here, and what comes nearest.

Those that have one are aliases of the setting (`Flag.aliases` in `parallm_openai.settings`).
"""

from __future__ import annotations

_FITS = "the device's memory is used as needed; --max-batch-tokens and --prefix-cache-tokens bound what caches take"
_READS = "--prefill-chunk is the most prompt tokens of a step, and --max-prefill-ms what they may delay others"
_CACHE = "--prefix-cache-tokens says in tokens how much is kept"
_AS_STORED = "a model is computed in the types of its checkpoint (see `parallm-openai doctor`)"
_RANKS = "--launch --repeat-hosts N, or --hosts, shares a model among processes"
_ALWAYS = "it is always on"
_DRAFTS = "--draft-model, --draft and --draft-length say how to draft"
_HUB = "--model takes a hub id (owner/name), and also a GGUF file's path"
_THREADS = "OPENBLAS_NUM_THREADS in the environment limits the threads of a CPU"
_THOUGHTS = "the chat template says how thoughts are marked"

NO_EQUAL = {
    # vLLM
    "--gpu-memory-utilization": _FITS,
    "--max-num-batched-tokens": _READS,
    "--enable-chunked-prefill": _ALWAYS,
    "--enable-prefix-caching": f"{_ALWAYS}; {_CACHE}, and 0 keeps none",
    "--no-enable-prefix-caching": "--prefix-cache-tokens 0 keeps nothing",
    "--speculative-config": _DRAFTS,
    "-sc": _DRAFTS,
    "--enable-auto-tool-choice": _ALWAYS,
    "--reasoning-parser": _THOUGHTS,
    "--override-generation-config": "--temperature, --top-p, --top-k, --min-p and --repetition-penalty set defaults",
    "--tensor-parallel-size": _RANKS,
    "-tp": _RANKS,
    "--pipeline-parallel-size": f"{_RANKS}, and --pipeline deals out its layers",
    "-pp": f"{_RANKS}, and --pipeline deals out its layers",
    "--data-parallel-size": "--replicas serves by several engines",
    "-dp": "--replicas serves by several engines",
    "--dtype": _AS_STORED,
    "--quantization": "a model's own files say how it is quantised; `mlx_lm.convert` quantises one",
    "--kv-cache-dtype": "caches have the types of the model",
    "--tokenizer": "the tokenizer is the one beside the model",
    "--download-dir": "HF_HOME in the environment says where the hub's cache is",
    "--hf-token": "HF_TOKEN in the environment is the hub's token",
    "--enable-log-requests": "--log-level says what is logged of requests; what they say never is",
    "--disable-log-requests": "--log-level warning logs no requests",
    "--enforce-eager": "there are no graphs to capture",
    # mlx_lm
    "--use-default-chat-template": "--chat-template takes a file, or Jinja",
    "--prompt-cache-size": _CACHE,
    "--prompt-cache-bytes": _CACHE,
    "--prefill-step-size": _READS,
    "--prompt-concurrency": _READS,
    "--kv-bits": "caches are not quantised",
    "--ignore-chat-template": "prompts are continued as they are, unless --chat",
    # llama.cpp
    "-c": "--context-length is the most tokens of one request, and --max-batch-tokens of all that run",
    "--ctx-size": "--context-length is the most tokens of one request, and --max-batch-tokens of all that run",
    "-hf": _HUB,
    "-hfr": _HUB,
    "--hf-repo": _HUB,
    "-hfd": "--draft-model takes a hub id (owner/name)",
    "-ngl": "the whole model is on the device",
    "--gpu-layers": "the whole model is on the device",
    "--n-gpu-layers": "the whole model is on the device",
    "-t": _THREADS,
    "--threads": _THREADS,
    "-b": _READS,
    "--batch-size": f"--max-batch-size is how many requests run together; {_READS}",
    "-ub": _READS,
    "--ubatch-size": _READS,
    "-fa": "attention always runs in MLX's fused kernel",
    "--flash-attn": "attention always runs in MLX's fused kernel",
    "-cb": _ALWAYS,
    "--cont-batching": _ALWAYS,
    "--jinja": _ALWAYS,
    "--metrics": _ALWAYS,
    "--lora": "--adapter-path takes a folder as mlx_lm writes it",
    "--repeat-penalty": "--repetition-penalty looks at all tokens, not at the last 64",
    "-to": "--request-timeout is how long a request may take",
    "--timeout": "--request-timeout is how long a request may take",
    "--api-key-file": "PARALLM_API_KEY holds keys, with spaces between them, and so does a file of --config",
    "--spec-type": _DRAFTS,
    "--reasoning-format": _THOUGHTS,
    "-ctk": "caches have the types of the model",
    "--cache-type-k": "caches have the types of the model",
    "-ctv": "caches have the types of the model",
    "--cache-type-v": "caches have the types of the model",
    "--embedding": "an embedding model is served for embeddings as it is",
    "--embeddings": "an embedding model is served for embeddings as it is",
    "--mmproj": "images are not read",
    "-v": "--log-level debug logs more",
}
