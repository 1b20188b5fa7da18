"""Loading Mistral 7B into 4 bits: seconds, and peak resident memory, which must stay under 7 GB.

    python benchmarks/load_7b.py [--quantize 4|8|mxfp4|none] [--dtype stored|float32|bfloat16] [--folder DIR]

Writes a checkpoint with the names, shapes, types and shards of Mistral 7B v0.3 (14.5 GB of bfloat16) and random
contents into a temporary folder, loads it in a process of its own for each type, and deletes it. Prints a table, and
one JSON object on the last line.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic import MISTRAL_7B, total_size, write

LIMIT = 7e9  # bytes of resident memory

LOADS = """
import json, sys, time
from pathlib import Path
from mlxgpt import backend
backend.start()
import mlx.core as mx
from mlxgpt import weights
from mlxgpt.quantization import CHOICES
start = time.perf_counter()
dtype = None if sys.argv[2] == "stored" else getattr(mx, sys.argv[2])
model = weights.load(Path(sys.argv[1]), dtype, CHOICES.get(sys.argv[3]))
seconds = time.perf_counter() - start
sys.path.insert(0, sys.argv[4])
from synthetic import peak_memory
print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory(), "model_bytes": mx.get_active_memory()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quantize", default="4", choices=["4", "8", "mxfp4", "none"])
    parser.add_argument("--dtype", action="append", choices=["stored", "float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    need = total_size(MISTRAL_7B)
    place = arguments.folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < need * 1.1:
        sys.exit(f"{place} has no room for {need / 1e9:.1f} GB: give another --folder")
    rows = []
    with tempfile.TemporaryDirectory(dir=place) as name:
        start = time.perf_counter()
        write(Path(name), MISTRAL_7B)
        print(f"wrote {need / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        print("type      to      seconds  peak GB  model GB")
        for dtype in arguments.dtype or ["stored", "float32"]:
            command = [sys.executable, "-c", LOADS, name, dtype, arguments.quantize, str(Path(__file__).parent)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            row = {"dtype": dtype, "quantize": arguments.quantize} | json.loads(done.stdout.splitlines()[-1])
            sizes = f"{row['seconds']:9.1f}{row['peak_bytes'] / 1e9:9.2f}{row['model_bytes'] / 1e9:10.2f}"
            print(f"{dtype:9} {arguments.quantize:5} {sizes}", flush=True)
            rows.append(row)
    print(json.dumps({"checkpoint_bytes": need, "limit_bytes": LIMIT, "loads": rows}))
    if arguments.quantize == "4" and any(row["peak_bytes"] >= LIMIT for row in rows):
        sys.exit("the peak is over the limit")


if __name__ == "__main__":
    main()
