"""`mlxgpt serve` under load: people who type, each a request every 80 ms, of which most are given up for a newer one.

    python benchmarks/serve_load.py [--model M] [--root DIR] [--clients 1 4 16] [--minutes 2] [--json FILE]

Each client types the text of a file of its own, character by character, from a cursor somewhere in it, and asks /infill
after each; a request that has no answer when the next key comes is dropped, as an editor does it, by closing its
connection. After every second or so it pauses, and waits for what it asked. The server runs in a process of its own;
without --model it has the n-grams of --root alone (default: the asyncio of Python's standard library).

shown: the answers that had a text. p50, p95: milliseconds from a request to its answer, of those that were awaited.
dropped: the share that was given up. memory: of the server's process, resident, after the first tenth and at the end.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = 0.08  # seconds between two keys
BURST = 12  # keys until a client pauses


@dataclass
class Counts:
    """What a client saw."""

    asked: int = 0
    dropped: int = 0
    shown: int = 0
    failed: int = 0
    milliseconds: list[float] = field(default_factory=list)


async def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    """One request on a connection of its own, which is closed where the task is cancelled."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
    first, _, content = answer.partition(b"\r\n\r\n")
    if b" 200 " not in first.split(b"\r\n")[0]:
        raise OSError(first.decode("latin-1"))
    return json.loads(content)


async def client(port: int, text: str, seed: int, until: float, counts: Counts) -> None:
    """Type `text` from somewhere on until the time is over."""
    draw = random.Random(seed)

    async def ask(at: int) -> None:
        start = time.perf_counter()
        try:
            body = {
                "input_prefix": text[:at],
                "input_suffix": text[text.find("\n", at) :],
                "document": f"client {seed}",
            }
            answer = await post(port, body)
        except OSError:
            counts.failed += 1
            return
        counts.milliseconds.append(1000 * (time.perf_counter() - start))
        counts.shown += bool(answer["content"])

    while time.perf_counter() < until:
        at = draw.randrange(len(text) // 4, len(text) - 200)
        for _ in range(4):
            for _ in range(draw.randint(BURST // 2, 2 * BURST)):
                at += 1
                counts.asked += 1
                asking = asyncio.create_task(ask(at))
                await asyncio.sleep(KEY)
                if not asking.done():
                    asking.cancel()
                    counts.dropped += 1
            counts.asked += 1
            await ask(at)  # a pause: what was asked last is waited for


def resident(process: int) -> int:
    """Bytes of a process that are in memory."""
    if Path(f"/proc/{process}/statm").exists():
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


async def load(port: int, process: int, texts: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    counts = [Counts() for _ in range(clients)]
    until = time.perf_counter() + seconds
    typing = [
        asyncio.create_task(client(port, texts[i % len(texts)], i, until, count)) for i, count in enumerate(counts)
    ]
    await asyncio.sleep(seconds / 10)
    early = resident(process)
    await asyncio.gather(*typing)
    milliseconds = sorted(ms for count in counts for ms in count.milliseconds)
    asked = sum(count.asked for count in counts)
    cuts = statistics.quantiles(milliseconds, n=100) if len(milliseconds) > 1 else [0.0] * 99
    return {
        "clients": clients, "requests": asked, "answered": len(milliseconds), "p50": cuts[49], "p95": cuts[94],
        "dropped": sum(count.dropped for count in counts) / max(1, asked),
        "shown": sum(count.shown for count in counts) / max(1, len(milliseconds)),
        "failed": sum(count.failed for count in counts), "memory_early": early, "memory_end": resident(process),
    }  # fmt: skip


def started(model: str | None, root: Path) -> tuple[subprocess.Popen, int]:
    """The server's process and port, once it is ready."""
    command = [sys.executable, "-m", "mlxgpt.cli", "serve", "--port", "0", "--root", str(root)]
    command += ["--model", model] if model else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        if "ready" in line:
            return process, port
    sys.exit("the server did not start")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_path("stdlib")) / "asyncio")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = [path for path in sorted(options.root.rglob("*.py")) if path.stat().st_size > 4000]
    random.Random(1).shuffle(files)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files[: max(options.clients)]]
    process, port = started(options.model, options.root)
    try:
        rows = [asyncio.run(load(port, process.pid, texts, n, 60 * options.minutes)) for n in options.clients]
    finally:
        process.terminate()
        process.wait()
    columns = {"clients": 7, "requests": 9, "p50 ms": 7, "p95 ms": 7, "dropped": 8, "shown": 6, "failed": 7}
    print(*(f"{name:>{width}}" for name, width in columns.items()), f"{'memory MB':>16}")
    for row in rows:
        memory = f"{row['memory_early'] / 1e6:.0f} -> {row['memory_end'] / 1e6:.0f}"
        print(
            f"{row['clients']:7} {row['requests']:9,} {row['p50']:7.1f} {row['p95']:7.1f} {row['dropped']:8.1%} "
            f"{row['shown']:6.1%} {row['failed']:7} {memory:>16}"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"model": options.model, "minutes": options.minutes, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
