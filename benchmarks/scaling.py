"""Data parallel training: one process beside two on this machine, and what a network's bandwidth leaves of more.

    python benchmarks/scaling.py [--rounds 3] [--steps 8] [--json FILE]

The model of train_step.py, in float32: a step of 8 sequences of 256 tokens, of which each process takes its share. Two
processes are connected by MLX's ring over the loopback. Each measurement is processes of their own, the ways in turn; a
figure is the median of the steps after the warm-up, and the table gives medians over the rounds. `sum` is the time of
one sum of the gradients over the processes, measured by itself.

The prediction: a ring's all-reduce sends 2 (N - 1) / N times the gradients' bytes over each link (Patarasu and Yuan,
2009). Each of N machines takes steps of the same 8 sequences, as fast as this one with all threads; nothing overlaps,
and latency is not counted, so the efficiency is step / (step + bytes / bandwidth).
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_step import BATCH, WARM_UP, batches, ours

WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
MACHINES, GIGABITS = (2, 4, 8), (1, 10, 40)


def work(steps: int) -> dict[str, float]:
    """One process: the median seconds of its steps and of the sum of its gradients, and their bytes."""
    model = ours()
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    from mlxgpt.config import OptimizerConfig
    from mlxgpt.training import distributed, optimizers
    from mlxgpt.training.step import make_step

    group, config = distributed.join(), OptimizerConfig()
    average = group.average if group.size > 1 else None
    step = make_step(model, optimizers.make(config), config.clip, mx.float32, average)
    rows = BATCH // group.size
    x, y = (mx.array(a[group.rank * rows : (group.rank + 1) * rows].astype("int32")) for a in batches())
    gradients = tree_map(mx.ones_like, model.trainable_parameters())
    mx.eval(gradients)
    times: list[float] = []
    sums: list[float] = []
    for _ in range(steps + WARM_UP):
        start = time.perf_counter()
        mx.eval(step([(x, y)]), model.state)
        times.append(time.perf_counter() - start)
        group.any(False)  # the sum is not to wait for a slower step elsewhere
        start = time.perf_counter()
        if average is not None:
            average(gradients)
        sums.append(time.perf_counter() - start)
    size = sum(g.nbytes for _, g in tree_flatten(gradients))
    seconds, summed = (statistics.median(found[WARM_UP:]) for found in (times, sums))
    return {"seconds": seconds, "sum_seconds": summed, "gradient_bytes": size}


def measure(processes: int, threads: int, steps: int) -> dict[str, float]:
    """The figures of the first of so many processes, which train together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(processes)]
    hosts = json.dumps([[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets])
    for each in sockets:
        each.close()
    count = str(threads)
    limits = {"MLXGPT_THREADS": count, "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(hosts)
        file.flush()
        ring = {"MLX_HOSTFILE": file.name} if processes > 1 else {}
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", "--steps", str(steps)], text=True, stdout=subprocess.PIPE,
                env=os.environ | limits | ring | ({"MLX_RANK": str(rank)} if ring else {}),
            )
            for rank in range(processes)
        ]  # fmt: skip
        told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a process failed; what it said is above")
    return json.loads(told[0].splitlines()[-1])


def predict(step: float, size: float) -> list[dict[str, float]]:
    """For machines and links: seconds a step that the gradients take on the wire, and what is left of N times the
    speed."""
    rows = []
    for machines in MACHINES:
        for gigabits in GIGABITS:
            wire = 2 * (machines - 1) / machines * size * 8 / (gigabits * 1e9)
            rows.append({"machines": machines, "gigabits": gigabits, "wire_seconds": wire,
                         "efficiency": step / (step + wire)})  # fmt: skip
    return rows


def main() -> None:
    """Measure the ways in turn, print the tables and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="counted steps a process")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.steps)))
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, (processes, threads) in WAYS.items():
            runs[way].append(measure(processes, threads, options.steps))
    medians = {w: {k: statistics.median(r[k] for r in found) for k in found[0]} for w, found in runs.items()}
    one = medians["1 process, 1 thread"]["seconds"]
    print(f"{'':>27} {'s/step':>8} {'speed-up':>9} {'sum, s':>8}")
    for way, found in medians.items():
        print(f"{way:>27} {found['seconds']:>8.3f} {one / found['seconds']:>9.2f} {found['sum_seconds']:>8.4f}")
    two, whole = medians["2 processes, 1 thread each"], medians["1 process, 2 threads"]
    size = two["gradient_bytes"]
    loopback = size / two["sum_seconds"]  # with two, each sends and receives the gradients' bytes once
    print(f"\ngradients: {size / 1e6:.1f} MB; over the loopback {loopback / 1e9:.2f} GB/s each way")
    predicted = predict(whole["seconds"], size)
    print(f"\npredicted beside a step of {whole['seconds']:.3f} s")
    print(f"{'machines':>8} {'Gbit/s':>7} {'wire, s':>8} {'efficiency':>11}")
    for row in predicted:
        print(f"{row['machines']:>8} {row['gigabits']:>7} {row['wire_seconds']:>8.4f} {row['efficiency']:>11.0%}")
    if options.json:
        table: dict[str, Any] = {
            "machine": f"{platform.system()} {platform.machine()}", "rounds": options.rounds, "steps": options.steps,
            "medians": medians, "loopback_bytes_per_second": loopback, "predicted": predicted,
        }  # fmt: skip
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
