"""The verbs: what they print, where they print it, and what they leave unimported."""

import json
import shutil
import subprocess
import sys

import pytest

from mlxgpt import config, tokenizer, weights
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester

NEEDED = {"mlx", "numpy", "sentencepiece"}  # by decoding with a BPE
HEAVY = NEEDED | {"mlx_lm", "transformers", "torch", "matplotlib", "tokenizers", "rich", "rensa", "huggingface_hub"}
HEAVY |= {"starlette", "uvicorn", "msgspec", "prometheus_client"}
VERBS = {"train", "generate", "complete", "eval", "convert", "models", "configs", "doctor", "kernels", "serve", "setup"}


def imported(*arguments: object) -> set[str]:
    """The top-level packages that a command has imported when it ends; it must end well."""
    code = (
        "import sys\nfrom mlxgpt.cli import main\ntry:\n    main.main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(end.code, *sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    status, *names = done.stderr.splitlines()[-1].split()
    assert status == "0", done.stderr
    return set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["train", "--help"], ["configs"]], ids=" ".join)
def test_what_only_prints_imports_nothing_heavy(arguments):
    assert imported(*arguments) & HEAVY == set()


def test_decoding_imports_no_more_than_it_needs(trained, code):
    generating = imported("generate", "--model", trained, "--prompt", "def ", "--max-tokens", 2, "--temperature", 1)
    completing = imported("complete", "--model", trained, code / "glob.py", "--line", 5, "--column", 1)
    assert generating & HEAVY == completing & HEAVY == NEEDED


def test_help(cli):
    top = cli("--help")
    assert (top.status, top.err) == (0, "")
    assert cli() == cli("-h") == top
    for verb in VERBS:
        assert f"\n  {verb} " in top.out
        assert cli(verb, "--help").out.startswith(f"Usage: mlxgpt {verb} ")


def test_version(cli):
    assert cli("--version").out == "mlxgpt, version 0.1.0\n"


def test_configs(cli, tmp_path):
    listed = cli("configs").out
    assert [line.split()[0] for line in listed.splitlines()] == config.recipe_names()
    assert {"tiny", "shakespeare_char_cpu", "shakespeare_char_gpu", "gpt2_decoder", "zig_mistral", "gpt2_124m"} <= set(
        config.recipe_names()
    )
    text = cli("configs", "tiny").out
    (tmp_path / "own.toml").write_text(text)
    assert config.load_recipe(str(tmp_path / "own.toml")) == config.load_recipe("tiny")
    rows = json.loads(cli("configs", "--json").out)["recipes"]
    assert [f"{row['name']:22} {row['about']}" for row in rows] == listed.splitlines()
    table = json.loads(cli("configs", "tiny", "--json").out)
    assert table["train"]["batch_size"] == config.load_recipe("tiny").train.batch_size
    assert "is a text" in cli("configs", "keys", "--json").error
    keys = cli("configs", "keys").out
    assert "  min_lr = 0.0001  (a number)\n      learning rate at the end of the run" in keys
    assert "  num_key_value_heads = 8" in keys


def test_doctor(cli):
    table = json.loads(cli("doctor", "--json").out.splitlines()[-1])
    assert {"mlxgpt", "mlx", "device", "blas", "blas_is_fast", "matmul_gflops", "cache"} <= table.keys()
    assert table["matmul_gflops"] > 0
    lines = cli("doctor").out.splitlines()
    assert [line.split()[0] for line in lines] == list(table)


@pytest.fixture(scope="module")
def loaded(trained):
    return weights.load_with_tokenizer(trained)


def generated(cli, *arguments: object, **options) -> dict:
    done = cli("generate", *arguments, "--json", **options)
    assert done.status == 0, done.err
    assert done.err == ""
    assert len(done.out.splitlines()) == 1
    return json.loads(done.out)


def test_generate_json(trained, loaded, cli):
    table = generated(cli, "--model", trained, "--prompt", "def f(", "--max-tokens", 12)
    assert list(table) == [
        "text", "token_ids", "prompt_token_ids", "finish_reason", "time_to_first_token", "tokens_per_second",
        "peak_memory_bytes",
    ]  # fmt: skip
    its_tokenizer: tokenizer.Tokenizer = loaded[1]
    assert table["prompt_token_ids"] == [its_tokenizer.bos_id, *its_tokenizer.encode("def f(")]
    assert its_tokenizer.decode(table["token_ids"]).decode("utf-8", "replace") == table["text"]
    assert len(table["token_ids"]) == 12
    assert table["finish_reason"] == "length"
    assert table["time_to_first_token"] > 0
    assert table["tokens_per_second"] > 0
    assert isinstance(table["peak_memory_bytes"], int)
    assert table["peak_memory_bytes"] > 0


def test_generate_streams_the_same_text(trained, cli):
    arguments = ("--model", trained, "--prompt", "import ", "--max-tokens", 12)
    done = cli("generate", *arguments)
    assert (done.status, done.err) == (0, "")
    assert done.out == generated(cli, *arguments)["text"] + "\n"


def test_generate_reads_stdin(trained, cli):
    typed = generated(cli, "--model", trained, "--prompt", "class A:\n", "--max-tokens", 5)
    piped = generated(cli, "--model", trained, "--prompt", "-", "--max-tokens", 5, stdin=b"class A:\n")
    assert piped["token_ids"] == typed["token_ids"]
    assert piped["prompt_token_ids"] == typed["prompt_token_ids"]
    raw = generated(cli, "--model", trained, "--prompt", "-", "--max-tokens", 5, stdin=b"\xff\xfe\x00 = 1")
    assert raw["prompt_token_ids"]


def test_generate_draws_by_seed_and_stops_at_a_text(trained, cli):
    arguments = ("--model", trained, "--prompt", "def ", "--max-tokens", 30, "--temperature", 1.0)
    options = ("--top-p", 0.9, "--top-k", 50, "--min-p", 0.01, "--repetition-penalty", 1.1)
    first, second, other = (generated(cli, *arguments, *options, "--seed", seed) for seed in (1, 1, 2))
    assert first["token_ids"] == second["token_ids"] != other["token_ids"]
    middle = first["text"][len(first["text"]) // 2 :][:3]
    stopped = generated(cli, *arguments, *options, "--seed", 1, "--stop", "never there", "--stop", middle)
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == first["text"][: first["text"].index(middle)]


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
def test_generate_in_any_type(trained, cli, dtype):
    table = generated(cli, "--model", trained, "--prompt", "def ", "--max-tokens", 3, "--dtype", dtype)
    assert len(table["token_ids"]) == 3


def test_complete_json(trained, loaded, code, cli):
    file = code / "cmd.py"
    number, text = next((n, s) for n, s in enumerate(file.read_text().splitlines(), 1) if "return self." in s)
    column = text.index("self.") + 1
    done = cli("complete", "--model", trained, file, "--line", number, "--column", column, "--json")
    assert (done.status, done.err) == (0, "")
    table = json.loads(done.out)
    assert list(table) == ["completion", "tokens", "mean_logprob", "latency_ms", "confidence", "reason"]
    before, after = file.read_bytes().split(text.encode(), 1)
    prefix = before + text[: column - 1].encode()
    suggester = Suggester(*loaded, settings=Settings.load(trained))
    expected = suggester.suggest(prefix, text[column - 1 :].encode() + after)
    assert (table["completion"], table["tokens"]) == (expected.completion, expected.tokens)
    assert table["mean_logprob"] == pytest.approx(expected.mean_logprob, abs=1e-4)
    assert table["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert table["reason"] == expected.reason
    assert table["latency_ms"] > 0
    plain = cli("complete", "--model", trained, file, "-l", number, "-c", column)
    assert plain.out == table["completion"] + "\n"


def test_complete_reads_the_text_before_the_cursor_from_stdin(trained, loaded, cli):
    prefix = b"import os\n\n\ndef f(self):\n    retur"
    done = cli("complete", "--model", trained, "--json", stdin=prefix)
    suggester = Suggester(*loaded, settings=Settings.load(trained))
    assert json.loads(done.out)["completion"] == suggester.suggest(prefix).completion
    assert cli("complete", "--model", trained, stdin=prefix).out.startswith("n")


def test_complete_without_a_model_knows_the_project(code, cli, tmp_path):
    file = tmp_path / "new.py"
    file.write_text("import shlex\n\nlexer = shlex.shlex(posix=True)\nlexer.whitespace_sp\n")
    place = (file, "--line", 4, "--column", 20)
    known = cli("complete", *place, "--root", code)
    assert (known.status, known.err) == (0, "")
    assert known.out in ("lit = True\n", "lit = False\n")  # as often the one as the other
    unknown = json.loads(cli("complete", *place, "--json").out)
    assert (unknown["completion"], unknown["reason"]) == ("", "nothing is known that could follow")
    table = json.loads(cli("complete", *place, "--root", code, "--json").out)
    for option, value in (("--threshold", 1), ("--false-show", 0)):
        hidden = json.loads(cli("complete", *place, "--root", code, option, value, "--json").out)
        assert (hidden["completion"], hidden["confidence"]) == ("", table["confidence"])
        assert hidden["reason"].startswith(f"confidence {table['confidence']:.2f} is below the threshold")
    assert cli("complete", *place, "--root", code, "--threshold", 0).out == known.out


def test_complete_goes_on_to_the_end_of_the_block(trained, code, cli, tmp_path):
    file = tmp_path / "new.py"
    file.write_text("import bisect\n\ndef insort_ri\n")
    one = cli("complete", file, "-l", 3, "-c", 14, "--root", code).out
    many = cli("complete", file, "-l", 3, "-c", 14, "--root", code, "--multiline").out
    assert one.count("\n") == 1
    assert many.count("\n") > 1
    assert many.startswith(one)
    assert cli("complete", "--model", trained, file, "-l", 3, "-c", 14, "--multiline").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--using", "both"], "--using both needs a model: give --model, or --using ngrams"),
        (["--using", "model"], "--using model needs a model"),
        (["--threshold", "0.5", "--false-show", "0.5"], "--threshold and --false-show exclude each other"),
        (["--threshold", "1.5"], "Invalid value for '--threshold'"),
        (["--root", "/none/such"], "no such file or folder: /none/such"),
    ],
)
def test_complete_says_what_is_wrong_with_its_options(cli, arguments, message):
    done = cli("complete", *arguments, stdin=b"x")
    assert done.status == 2
    assert message in done.error


def test_a_terminal_that_knows_only_ascii_is_served(trained, spawn, tmp_path):
    out = tmp_path / "é"
    shutil.copytree(trained, out)
    done = spawn("train", "--resume", "--out", out, PYTHONIOENCODING="ascii")
    assert done.status == 0, done.err
    assert done.out.startswith(f"model {tmp_path}/\\xe9\n")


def test_a_reader_that_leaves_is_no_error(trained):
    command = [sys.executable, "-m", "mlxgpt.cli", "generate", "--model", str(trained), "--prompt", "def ", "-n", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
