"""Prefill, first token, decoding and memory, against mlx-lm on the same weights in the same run.

    python benchmarks/decode.py [--shapes 34m 110m 7b] [--formats float32 bfloat16 4] [--prompt 512] [--tokens 64]
                                [--rounds 3] [--folder DIR] [--json FILE]

Random weights of a Mistral's shape are written once for each shape and format; every measurement is a process of its
own, mlxgpt's and mlx-lm's in turn, and the medians of the rounds are compared. `first token` is from an imported
library to the first token of the answer: load, prefill and whatever is compiled on the way (caches on disk are warm:
the first round is not counted). Decoding is greedy. Each tool opens the folder as its users would: on a CPU mlxgpt may
compute in another type than the folder's. llama.cpp joins where the packages llama-cpp-python and gguf are installed.
The last column is what reading the weights once a token would take at the memory bandwidth measured at the start: the
floor of decoding.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import SHAPES, peak_memory, total_size, write

COLUMNS = ("first token s", "prefill t/s", "decode t/s", "peak GB")
PROMPT_SEED = 7


def prompt_of(folder: Path, count: int) -> list[int]:
    """Token ids of the prompt, int [count]."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(PROMPT_SEED).integers(0, vocabulary, count).tolist()


def mlxgpt(folder: Path, prompt: list[int], count: int) -> list[float]:
    """Times after the first token's start: loaded, first token, last token."""
    from mlxgpt import backend

    backend.start()
    import mlx.core as mx

    from mlxgpt import weights
    from mlxgpt.generation.engine import Decoder, Request, decode
    from mlxgpt.generation.sampling import Chooser, Sampling

    start = time.perf_counter()
    model = weights.fill(weights.open_folder(folder), backend.compute_dtype("auto"), compact=True)
    mx.eval(model.parameters())
    times = [time.perf_counter() - start]
    decoder = Decoder(model)
    logits = decoder.prefill(prompt)
    choose = Chooser(Sampling(), model.config.vocab_size, 0, ())
    for _ in decode(decoder, logits, choose, list(prompt), Request(max_tokens=count)):
        times.append(time.perf_counter() - start)
    return [times[0], times[1], times[-1]]


def mlx_lm(folder: Path, prompt: list[int], count: int) -> list[float]:
    """The same times of mlx-lm's own loop."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    start = time.perf_counter()
    model, _ = load_model(folder)
    times = [time.perf_counter() - start]
    for _ in generate_step(mx.array(prompt), model, max_tokens=count):
        times.append(time.perf_counter() - start)
    return [times[0], times[1], times[-1]]


def llama_cpp(folder: Path, prompt: list[int], count: int) -> list[float]:
    """The same times of llama.cpp, by its own C interface, on as many threads as there are cores."""
    import ctypes

    import llama_cpp as c

    silent = c.llama_log_callback(lambda level, text, data: None)  # must outlive the calls that log
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    start = time.perf_counter()
    model = c.llama_model_load_from_file(str(folder / "model.gguf").encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch = len(prompt) + count, len(prompt)
    settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
    context = c.llama_init_from_model(model, settings)
    times, tokens = [time.perf_counter() - start], prompt
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    for _ in range(count):
        ids = (c.llama_token * len(tokens))(*tokens)  # the batch points into it
        if c.llama_decode(context, c.llama_batch_get_one(ids, len(tokens))):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(c.llama_get_logits_ith(context, ctypes.c_int32(-1)), (vocabulary,))
        tokens = [int(logits.argmax())]
        times.append(time.perf_counter() - start)
    return [times[0], times[1], times[-1]]


TOOLS = {"mlxgpt": mlxgpt, "mlx-lm": mlx_lm, "llama.cpp": llama_cpp}


def measure(tool: str, folder: Path, prompt: int, count: int) -> dict[str, float]:
    """One process of one tool: the figures of COLUMNS by name."""
    command = [sys.executable, __file__, "--tool", tool, "--folder", str(folder)]
    command += ["--prompt", str(prompt), "--tokens", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tool} on {folder.name}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(tool: str, folder: Path, prompt: int, count: int) -> None:
    """The child's part: measure and print."""
    loaded, first, last = TOOLS[tool](folder, prompt_of(folder, prompt), count)
    figures = (first, prompt / (first - loaded), (count - 1) / (last - first), peak_memory() / 1e9)
    print(json.dumps(dict(zip(COLUMNS, figures, strict=True))))


def bandwidth() -> float:
    """GB/s at which this machine's MLX, as mlxgpt sets it up, reads a matrix of 1 GB once."""
    code = "from mlxgpt import backend; backend.start(); from mlxgpt import measure; print(measure.bandwidth(1 << 30))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) / 1e9


def prepare(place: Path, shape: str, kind: str, tools: list[str]) -> Path:
    """The folder of one shape in one format, made by `mlxgpt convert` from the bfloat16 one."""
    stored = place / f"{shape}-bfloat16"
    if not stored.exists():
        stored.mkdir()
        write(stored, SHAPES[shape])
    folder = place / f"{shape}-{kind}"
    if not folder.exists():
        option = ["--quantize", kind] if kind in ("4", "8") else ["--dtype", kind]
        command = [sys.executable, "-m", "mlxgpt.cli", "convert", str(stored), str(folder), *option]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if "llama.cpp" in tools and not (folder / "model.gguf").exists():
        write_gguf(stored, folder / "model.gguf", SHAPES[shape], kind)
    return folder


def write_gguf(stored: Path, target: Path, config: dict[str, Any], kind: str) -> None:
    """The same weights as llama.cpp reads them: float32, bfloat16, or Q4_0 and Q8_0 for 4 and 8 bits; norms float32."""
    import gguf
    import mlx.core as mx

    types = gguf.GGMLQuantizationType
    wanted = {"float32": types.F32, "bfloat16": types.BF16, "4": types.Q4_0, "8": types.Q8_0}[kind]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for file in sorted(stored.glob("*.safetensors")):
        tensors: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        for name in list(tensors):
            array = np.array(tensors.pop(name).astype(mx.float32))
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            if "q_proj" in name or "k_proj" in name:  # llama.cpp turns neighbours, the Hub's layout the two halves
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            kept = wanted if array.ndim == 2 else types.F32
            data = array if kept == types.F32 else gguf.quants.quantize(array, kept)
            writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def installed() -> list[str]:
    """The tools that can be measured here."""
    from importlib.util import find_spec

    llama = find_spec("llama_cpp") and find_spec("gguf")
    return [tool for tool in TOOLS if tool != "llama.cpp" or llama]


def compare(place: Path, shape: str, kind: str, options: argparse.Namespace, speed: float) -> list[dict[str, Any]]:
    """Measure one shape in one format with every tool, in turn; print its lines."""
    tools = options.tools or installed()
    folder = prepare(place, shape, kind, tools)
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    rounds: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for i in range(options.rounds + 1):
        for tool in tools:
            figures = measure(tool, folder, options.prompt, options.tokens)
            if i or options.rounds == 0:
                rounds[tool].append(figures)
    rows = []
    ours = {c: statistics.median(r[c] for r in rounds["mlxgpt"]) for c in COLUMNS}
    for tool in tools:
        median = {c: statistics.median(r[c] for r in rounds[tool]) for c in COLUMNS}
        ratios = {c: median[c] / ours[c] if c in ("first token s", "peak GB") else ours[c] / median[c] for c in COLUMNS}
        cells = "".join(
            f"{median[c]:>10.2f}" + (f" {ratios[c]:>5.2f}x" if tool != "mlxgpt" else " " * 7) for c in COLUMNS
        )
        print(f"{shape:>5} {kind:>8} {tool:>9}{cells}{speed * 1e9 / weights:>11.1f}", flush=True)
        rows.append({"shape": shape, "format": kind, "tool": tool, "rounds": options.rounds, **median})
    if shape == "7b":
        shutil.rmtree(folder)
    return rows


def main() -> None:
    """Parse, measure, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["34m", "110m"])
    parser.add_argument(
        "--formats", nargs="+", choices=["float32", "bfloat16", "4", "8"], default=["float32", "bfloat16", "4"]
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, after one that is not; 0: that one only")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        one(options.tool, options.folder, options.prompt, options.tokens)
        return
    place = options.folder or Path(tempfile.gettempdir())
    need = max(total_size(SHAPES[shape]) for shape in options.shapes) * 4
    if shutil.disk_usage(place).free < need:
        sys.exit(f"{place} has no room for {need / 1e9:.0f} GB: give another --folder")
    speed = bandwidth()
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, weights read at {speed:.0f} GB/s; "
          f"prefill {options.prompt}, decode {options.tokens}")  # fmt: skip
    print(f"{'shape':>5} {'format':>8} {'tool':>9}" + "".join(f"{c:>13}    " for c in COLUMNS) + "floor t/s")
    rows = []
    with tempfile.TemporaryDirectory(dir=place) as name:
        for shape in options.shapes:
            for kind in options.formats:
                rows += compare(Path(name), shape, kind, options, speed)
    if options.json:
        machine = f"{platform.system()} {platform.machine()}"
        table = {
            "machine": machine,
            "bandwidth_gb_s": speed,
            "prompt": options.prompt,
            "tokens": options.tokens,
            "rows": rows,
        }
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
