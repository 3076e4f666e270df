"""Make the bundled model pair from nothing: `python -m demo_training.train`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    # Before the imports below, which import mlx.
    from parallm_openai.cpu import prepare

    prepare()

import mlx.core as mx
from tokenizers import Tokenizer

from demo_training.batches import Batch, batches
from demo_training.chatml import spans
from demo_training.corpus import documents
from demo_training.learn import Plan, distillation_loss, learn, next_token_loss, together
from demo_training.model import DRAFT, TARGET, build, load_weights, parameter_count, save
from demo_training.plant import plant
from demo_training.tokenizer import train_tokenizer
from parallm_openai.demo import DRAFT_PATH, TARGET_PATH

TARGET_PLAN = Plan(steps=9000, minutes=60, matrix_rate=0.008, rate=0.0015)
DRAFT_PLAN = Plan(steps=1500, minutes=20, matrix_rate=0.02, rate=0.004)
BATCH = 1536
SEEDS = {"tokenizer": 1, "weights": 2, "target": 3, "draft": 4}


def _tokenizer() -> Tokenizer:
    sample = itertools.islice(documents(SEEDS["tokenizer"]), 20_000)
    return train_tokenizer("".join(text for text, _ in spans(one)) for one in sample)


@dataclass(frozen=True)
class Run:
    """How this run differs from the plan: `rate` scales the learning rates, another `seed` is other text."""

    minutes: float
    resume: bool = False
    rate: float = 1.0
    seed: int = 0

    def of(self, plan: Plan) -> Plan:
        return replace(plan, minutes=self.minutes, matrix_rate=plan.matrix_rate * self.rate, rate=plan.rate * self.rate)


def _stream(tokenizer: Tokenizer, seed: int, run: Run, group: mx.distributed.Group) -> Iterator[tuple[Batch, ...]]:
    """The run's batches; models that are gone on with have had their early drills."""
    early = {"early": 0} if run.resume else {}
    return together(batches(tokenizer, seed + run.seed, BATCH, **early), group.size())


def train_target(folder: Path, run: Run, group: mx.distributed.Group) -> dict[str, float]:
    """Tokenizer and target from the corpus."""
    if run.resume:
        tokenizer, model = Tokenizer.from_file(str(folder / "tokenizer.json")), load_weights(TARGET, folder)
    else:
        mx.random.seed(SEEDS["weights"])
        tokenizer, model = _tokenizer(), build(TARGET)
        plant(model)
    print(f"target: {parameter_count(model)} parameters", flush=True)
    stream = _stream(tokenizer, SEEDS["target"], run, group)
    return learn(
        model, next_token_loss, stream, run.of(TARGET_PLAN), group, lambda: save(model, TARGET, tokenizer, folder)
    )


def train_draft(target: Path, folder: Path, run: Run, group: mx.distributed.Group) -> dict[str, float]:
    """The draft from the finished target's distribution."""
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    teacher = load_weights(TARGET, target)
    if run.resume:
        model = load_weights(DRAFT, folder)
    else:
        mx.random.seed(SEEDS["weights"])
        model = build(DRAFT)
        plant(model)
    print(f"draft: {parameter_count(model)} parameters", flush=True)
    stream = _stream(tokenizer, SEEDS["draft"], run, group)
    return learn(
        model,
        distillation_loss(teacher),
        stream,
        run.of(DRAFT_PLAN),
        group,
        lambda: save(model, DRAFT, tokenizer, folder),
    )


def run_processes(count: int) -> int:
    """Run this command in `count` processes of one BLAS thread each, joined in a ring.

    MLX's CPU backend evaluates a graph on one thread, so a single process leaves the
    other cores idle outside its matrix products.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]
    for one in sockets:
        one.close()
    with tempfile.TemporaryDirectory() as folder:
        hostfile = Path(folder) / "hosts.json"
        hostfile.write_text(json.dumps(hosts))
        shared = os.environ | {"MLX_HOSTFILE": str(hostfile), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "demo_training.train", *sys.argv[1:]]
        workers = [subprocess.Popen(command, env=shared | {"MLX_RANK": str(rank)}) for rank in range(count)]
        return max(worker.wait() for worker in workers)


def main() -> None:
    """Train what is asked for, and leave the files where the package looks for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET_PATH, help="folder of the target")
    parser.add_argument("--draft", type=Path, default=DRAFT_PATH, help="folder of the draft")
    parser.add_argument("--target-minutes", type=float, default=TARGET_PLAN.minutes)
    parser.add_argument("--draft-minutes", type=float, default=DRAFT_PLAN.minutes)
    parser.add_argument("--only", choices=("target", "draft"), help="train only one of the two")
    parser.add_argument("--resume", action="store_true", help="start from the models that are there")
    parser.add_argument("--rate", type=float, default=1.0, help="scale of the learning rates")
    parser.add_argument("--seed", type=int, default=0, help="give a resumed run text that it has not seen")
    parser.add_argument("--processes", type=int, default=2, help="processes that share the work")
    options = parser.parse_args()
    if options.processes > 1 and "MLX_RANK" not in os.environ:
        sys.exit(run_processes(options.processes))
    group = mx.distributed.init(backend="ring" if options.processes > 1 else "any")
    done: dict[str, dict[str, float]] = {}
    if options.only != "draft":
        run = Run(options.target_minutes, options.resume, options.rate, options.seed)
        done["target"] = train_target(options.target, run, group)
    if options.only != "target":
        run = Run(options.draft_minutes, options.resume, options.rate, options.seed)
        done["draft"] = train_draft(options.target, options.draft, run, group)
    if group.rank() == 0:
        print(json.dumps(done, indent=2))


if __name__ == "__main__":
    main()
