"""Bad input: an exit status, one line of error that says what and where, and never a traceback."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mlxgpt.data import corpus
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import CharTokenizer


@pytest.fixture(scope="module")
def places(tmp_path_factory, trained, code, small):
    """Names for what the cases below need."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "nothing").mkdir()
    (folder / "empty.py").write_text("")
    (folder / "blank.py").write_text(" \n\n")
    (folder / "short.py").write_text("def f():\n    return 'too little to learn from'\n" * 3)
    (folder / "binary.py").write_bytes(b"\0\1\2" * 100)
    (folder / "latin.py").write_bytes("é = 1\n".encode("latin-1") * 100)
    (folder / "broken.toml").write_text("[model\n")
    (folder / "odd.toml").write_text('[model]\ntype = "gpt2"\n[trian]\nsteps = 1\n')
    (folder / "untyped.toml").write_text("[model]\nn_layer = 1\n")
    (folder / "table.toml").write_text("train = 3\n[model]\ntype = 'gpt2'\n")
    (folder / "bytes.toml").write_bytes(b"\xff\xfe")
    return {"F": folder, "M": trained, "C": code, "S": small, "L": "word " * 400}


TRAIN = "train {C} -c {S} -o {R} --steps 2"
CASES = [
    # paths
    ("train {F}/none -o {R}", 2, "no such file or folder: {F}/none"),
    ("train '' -o {R}", 2, "the path is empty"),
    ("train {F}/nothing -c {S} -o {R}", 1, "no text to learn from: no file was found"),
    ("train {F}/empty.py -c {S} -o {R}", 1, "cannot learn from {F}/empty.py: it is empty"),
    ("train {F}/blank.py -c {S} -o {R}", 1, "it is empty"),
    ("train {F}/binary.py -c {S} -o {R}", 1, "it is binary"),
    ("train {F}/latin.py -c {S} -o {R}", 1, "it is not UTF-8"),
    ("train /dev/null -c {S} -o {R}", 2, "neither a file nor a folder: /dev/null"),
    ("eval -m {M} {F}/none", 2, "no such file or folder: {F}/none"),
    ("eval -m {M} {F}/nothing", 1, "no text"),
    # a corpus too small: for its tokenizer, and for one batch
    ("train {F}/short.py -c {S} -o {R}", 1, "too small for a vocabulary of 512"),
    ("train {F}/short.py -c {S} -o {R} --set tokenizer.kind=byte", 1, "do not fill one batch of 8 sequences of 64"),
    # recipes and settings
    ("train {C} -o {R} -c tinny", 2, "no configuration is called 'tinny'; did you mean 'tiny'?"),
    ("train {C} -o {R} -c {F}/none.toml", 2, "no such configuration file: {F}/none.toml"),
    ("train {C} -o {R} -c {F}/broken.toml", 2, "not valid TOML"),
    ("train {C} -o {R} -c {F}/bytes.toml", 2, "{F}/bytes.toml cannot be read"),
    ("train {C} -o {R} -c {F}/odd.toml", 2, "unknown section [trian]; did you mean 'train'?"),
    ("train {C} -o {R} -c {F}/untyped.toml", 2, "must say its type"),
    ("train {C} -o {R} -c {F}/table.toml", 2, "must be a section"),
    (TRAIN + " --set train.step=3", 2, "unknown key 'train.step'; did you mean 'train.steps'?"),
    (TRAIN + " --set model.hiden_size=3", 2, "did you mean 'model.hidden_size'?"),
    (TRAIN + " --set steps=3", 2, "unknown key 'steps'; did you mean 'train.steps'?"),
    (TRAIN + " --set train.steps", 2, "--set takes key=value"),
    (TRAIN + " --set train.batch_size=two", 2, "train.batch_size must be a whole number"),
    (TRAIN + " --set train.batch_size=0", 2, "train.batch_size must be at least 1"),
    (TRAIN + " --set optimizer.lr=nan", 2, "optimizer.lr must be a number"),
    (TRAIN + " --set optimizer.lr=-1", 2, "optimizer.lr must be at least 0"),
    (TRAIN + " --set optimizer.min_lr=1", 2, "optimizer.min_lr must not exceed optimizer.lr"),
    (TRAIN + " --set optimizer.schedule=square", 2, "must be one of 'cosine', 'wsd', 'constant'"),
    (TRAIN + " --set data.validation_fraction=1", 2, "must be below 1"),
    (TRAIN + " --set train.sequence_length=1000", 2, "longer than the model's context (128)"),
    (TRAIN + " --set model.type=gpt3", 2, "did you mean 'gpt2'?"),
    (TRAIN + " --set model.num_key_value_heads=3", 2, "not a multiple"),
    (
        TRAIN + " --set model.vocab_size=511",
        2,
        "model.vocab_size (511) is smaller than the tokenizer's vocabulary (512)",
    ),
    (TRAIN + " --set model.hidden_size=1000000", 1, "a training step takes about"),
    (TRAIN + " --set model.hidden_size=" + "4" + "0" * 12, 2, "too large"),
    (TRAIN + " --set tokenizer.kind=file", 2, "needs tokenizer.path"),
    (TRAIN + " --set tokenizer.kind=file --set tokenizer.path={F}/none", 2, "no such file or folder: {F}/none"),
    (TRAIN + " --set tokenizer.kind=file --set tokenizer.path={F}/nothing", 1, "has no tokenizer"),
    (TRAIN + " --set tokenizer.kind=file --set tokenizer.path={S}", 1, "not a SentencePiece model"),
    # options
    ("train {C} -o {R} --steps 0", 2, "'--steps'"),
    ("train {C} -o {R} --minutes 0", 2, "'--minutes'"),
    ("train {C} -o {R} --minutes nan", 2, "must be a number"),
    ("train {C} -o {R} --minutes inf", 2, "must be a number"),
    ("train {C} -o {R} --minutes 1 --steps 1", 2, "exclude each other"),
    ("train {C} -o {R} --seed -1", 2, "'--seed'"),
    ("train {C} -o {R} --seed 4294967296", 2, "'--seed'"),
    ("train {C} -o ''", 2, "the path is empty"),
    ("train {C}", 2, "Missing option '--out'"),
    ("train {C} -o {R} --frobnicate", 2, "No such option '--frobnicate'"),
    ("trian", 2, "No such command 'trian'"),
    ("--frobnicate", 2, "No such option"),
    ("generate -m {M} -p x --max-tokens 0", 2, "'--max-tokens'"),
    ("generate -m {M} -p x --temperature -1", 2, "temperature must be at least 0"),
    ("generate -m {M} -p x --temperature nan", 2, "temperature must be at least 0"),
    ("generate -m {M} -p x --top-p 0", 2, "top-p must be above 0"),
    ("generate -m {M} -p x --top-p 1.5", 2, "top-p must be above 0 and at most 1"),
    ("generate -m {M} -p x --top-k -1", 2, "top-k must be at least 0"),
    ("generate -m {M} -p x --min-p 2", 2, "min-p must be between 0 and 1"),
    ("generate -m {M} -p x --repetition-penalty 0", 2, "repetition penalty must be above 0"),
    ("generate -m {M} -p x --dtype int8", 2, "'--dtype'"),
    ("generate -m {M}", 2, "nothing to continue: give --prompt"),
    ("eval -m {M} --cursors -1", 2, "'--cursors'"),
    ("eval -m {M} --cursors " + "4" + "0" * 30, 2, "too large"),
    ("configs tiney", 2, "did you mean 'tiny'?"),
    # a prompt longer than the context, a place beyond the file
    ("generate -m {M} -p '{L}'", 1, "do not fit the model's context of 128"),
    (
        "complete -m {M} {C}/glob.py --line 99999 --column 1",
        2,
        "--line 99999 is beyond the end of {C}/glob.py",
    ),
    ("complete -m {M} {C}/glob.py --line 1 --column 999", 2, "--column 999 is beyond the end of line 1"),
    ("complete -m {M} {C}/glob.py --line 0 --column 1", 2, "'--line'"),
    ("complete -m {M} {C}/glob.py --line 1 --column 0", 2, "'--column'"),
    ("complete -m {M} {C}/glob.py --line 1", 2, "both --line and --column are needed"),
    ("complete -m {M} --line 1 --column 1", 2, "go with a FILE"),
    ("complete -m {M} {F}/none.py --line 1 --column 1", 2, "{F}/none.py cannot be read: No such file"),
    ("complete -m {M} {C} --line 1 --column 1", 2, "{C} cannot be read: Is a directory"),
    # model folders
    ("generate -m {F}/none -p x", 2, "there is no model '{F}/none'"),
    ("complete -m {F}/none", 2, "there is no model '{F}/none'"),
    ("eval -m {F}/none", 2, "there is no model '{F}/none'"),
    ("generate -m {S} -p x", 2, "there is no model '{S}'"),
    ("generate -m {F}/nothing -p x", 1, "{F}/nothing/config.json is missing"),
]


@pytest.mark.parametrize(("command", "status", "words"), CASES, ids=[c[0].replace("/", "|")[:70] for c in CASES])
def test_bad_input_is_one_clear_line(cli, places, tmp_path, command, status, words):
    places = places | {"R": tmp_path / "run"}
    arguments = [part.strip("'").format(**places) for part in command.split()]
    done = cli(*arguments)
    assert done.status == status, done
    assert words.format(**places) in done.error
    assert len(done.error) < 400
    assert done.out == ""
    assert not places["R"].exists()


VERBS = (["generate", "-p", "x"], ["complete"], ["eval"])
NEEDED = {
    "config.json": "config.json is missing",
    "model.safetensors": "model.safetensors is missing",
    "tokenizer.*": "has no tokenizer",
}


@pytest.fixture
def model(trained, tmp_path):
    """A model folder that may be spoilt."""
    shutil.copytree(trained, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize("name", NEEDED)
def test_a_model_folder_without_a_file_it_needs(cli, model, verb, name):
    for file in model.glob(name):
        file.unlink()
    done = cli(*verb, "-m", model)
    assert done.status == 1
    assert NEEDED[name] in done.error
    assert str(model) in done.error
    assert done.out == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("config.json", b'{"model_type": "bert"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("tokenizer.model", b"x"),
    ],
)
def test_a_model_folder_with_a_damaged_file(cli, model, name, content):
    (model / name).write_bytes(content)
    done = cli("generate", "-p", "x", "-m", model)
    assert done.status == 1
    assert str(model) in done.error
    assert len(done.error) < 300 + len(str(model))


def test_weights_that_were_cut_short(cli, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    done = cli("generate", "-p", "x", "-m", model)
    assert done.status == 1
    assert str(model) in done.error


def test_weights_of_another_model(cli, model):
    table = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(table | {"num_hidden_layers": 3}))
    done = cli("generate", "-p", "x", "-m", model)
    assert done.status == 1
    assert "do not fit the model of config.json; missing: model.layers.2." in done.error


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_vocabulary_that_does_not_fit_the_model(cli, model, verb):
    (model / "tokenizer.model").unlink()
    CharTokenizer("".join(map(chr, range(1000, 2000)))).save(model)
    done = cli(*verb, "-m", model)
    assert done.status == 1
    assert "tokens and the model only 512" in done.error


@pytest.mark.parametrize("name", ["data.json", "validation.bin"])
def test_a_run_without_its_validation_split(cli, model, name):
    (model / "training" / name).unlink()
    done = cli("eval", "-m", model)
    assert done.status == 1
    assert str(model) in done.error


def test_a_file_that_cannot_be_read(cli, places, monkeypatch, tmp_path):
    """As chmod 000 leaves it for anyone but root: named by the user it is an error, found in a folder it is skipped."""
    refused = str(places["C"] / "glob.py")

    def guarded(path, *mode, **more):
        if str(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *mode, **more)

    monkeypatch.setattr(corpus, "open", guarded, raising=False)
    done = cli("train", refused, "-c", places["S"], "-o", tmp_path / "run")
    assert done.status == 1
    assert f"cannot read {refused}: Permission denied" in done.error
    found = cli("eval", "-m", places["M"], places["C"], "--cursors", 0, "--json")
    assert found.status == 0
    assert "of 9 files" in found.err


def test_a_place_that_cannot_be_written(cli, places, tmp_path):
    """A folder where a file is in the way, which stops root too."""
    (tmp_path / "file").write_text("x")
    done = cli("train", places["C"], "-c", places["S"], "-o", tmp_path / "file" / "a" / "run", "--steps", 1)
    assert done.status == 1
    assert f"{tmp_path}/file/a/run cannot be made: Not a directory" in done.error


@pytest.mark.parametrize("name", ["MLXGPT_BLAS", "MLXGPT_CACHE"])
def test_an_environment_that_cannot_be(spawn, trained, name):
    if name == "MLXGPT_BLAS" and sys.platform != "linux":
        name = "MLXGPT_CACHE"  # macOS has its own
    done = spawn("eval", "-m", trained, **{name: "/dev/null/nowhere"})
    assert done.status == 2
    assert done.error.startswith(f"{name}=/dev/null/nowhere")
    assert spawn("--help", **{name: "/dev/null/nowhere"}).status == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_standard_output_on_a_full_disk():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mlxgpt.cli", "configs", "tiny"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "mlxgpt: error: No space left on device\n"


def test_every_error_of_usage_is_an_error():
    assert issubclass(UsageError, Error)
