"""Fine-tuning: an adapter on a small Mistral, plain and quantized: it learns, resumes, fuses, and mlx-lm opens it."""

import json
import shutil
import signal

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import adapters, weights
from mlxgpt.cli import main
from mlxgpt.convert import convert
from mlxgpt.errors import Error
from mlxgpt.layouts import RELEASE
from mlxgpt.quantization import Quantization
from mlxgpt.training import checkpoint
from mlxgpt.training.panel import Panel

TOKENS = mx.array([[1, 9, 40, 300, 17, 8, 5, 260, 31, 77]])
QUICK = (
    "--set", "train.batch_size=4", "--set", "train.sequence_length=32", "--set", "train.sample_tokens=4",
    "--set", "optimizer.lr=3e-3", "--set", "optimizer.warmup_steps=2", "--set", "train.evaluations=2",
    "--set", "data.validation_fraction=0.15",
)  # fmt: skip
NO_SPLIT = ("--set", "data.validation_fraction=0")  # and so nothing to calibrate, which takes seconds
BITS = [None, 4, 8]


def steps(out) -> list[dict]:
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    return [r for line in lines if (r := json.loads(line))["kind"] == "train"]


def logits(folder, adapter=None, quantize=None) -> np.ndarray:
    model, _ = weights.load_with_tokenizer(folder, mx.float32, quantize, adapter=adapter)
    return np.array(model(TOKENS))


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory):
    """A small Mistral that was trained before, without what else its run left."""
    folder = tmp_path_factory.mktemp("base") / "small"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("training", "report.html", "completion.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Code that the base has not seen: regular enough to be learned in a few steps."""
    folder = tmp_path_factory.mktemp("other") / "src"
    folder.mkdir()
    for n in range(8):
        lines = [f"PUBLIC FUNC Area_{n}_{i}(LHS, RHS) -> RETURN LHS * {i} + RHS;" for i in range(80)]
        (folder / f"area{n}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def runs(base, text, tmp_path_factory):
    """An adapter for each of BITS, twelve steps long."""
    outs = {}
    for bits in BITS:
        outs[bits] = tmp_path_factory.mktemp("adapters") / f"{bits}"
        more = ("--bits", bits) if bits else ()
        arguments = ("train", text, "--init", base, "--lora", *more, "--steps", 12, *QUICK, "--out", outs[bits])
        with pytest.raises(SystemExit, match="0"):
            main.main([str(a) for a in arguments])
    return outs


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_learns_and_its_folder_is_one(runs, bits):
    out = runs[bits]
    losses = [r["loss"] for r in steps(out)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    assert names >= {"adapters.safetensors", "adapter_config.json", "training", "report.html"}
    assert not names & {"model.safetensors", "config.json", "tokenizer.json"}
    held = mx.load(str(checkpoint.newest(out) / "model.safetensors"))
    assert {name.rpartition(".")[2] for name in held} == {"lora_a", "lora_b"}
    assert json.loads((out / "training" / "recipe.json").read_text())["parameters"] == sum(
        p.size for p in held.values()
    )


@pytest.mark.parametrize("bits", [None, 4])
def test_mlx_lm_opens_the_adapter_and_computes_the_same(runs, base, bits, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    folder = base
    if bits:
        folder = tmp_path / "quantized"
        convert(base, folder, mx.float32, Quantization(bits))
    theirs, _ = mlx_lm.load(str(folder), adapter_path=str(runs[bits]))
    ours = logits(folder, runs[bits])
    np.testing.assert_allclose(ours, np.array(theirs(TOKENS)), atol=2e-3)
    assert np.abs(ours - logits(folder)).max() > 0.1
    if bits:  # without a name for it, the adapter's own base, quantized as it was in training
        np.testing.assert_allclose(logits(base, runs[bits]), ours, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapter_resumes_exactly(runs, base, text, bits, cli, tmp_path, monkeypatch):
    out, train = tmp_path / "run", Panel.train
    monkeypatch.setattr(
        Panel, "train", lambda self, r: (train(self, r), r["step"] == 5 and signal.raise_signal(signal.SIGINT))
    )
    more = ("--bits", bits) if bits else ()
    arguments = ("train", text, "--init", base, "--lora", *more, "--steps", 12, *QUICK, "--out", out)
    stopped = cli(*arguments)
    assert stopped.status == 0, stopped.err
    assert "memory: about " in stopped.err
    assert len(steps(out)) == 5
    monkeypatch.undo()
    done = cli("train", "--out", out, "--resume")
    assert done.status == 0, done.err
    assert [r["loss"] for r in steps(out)] == [r["loss"] for r in steps(runs[bits])]
    for name in ("adapters.safetensors", "training/checkpoint-00000012/optimizer.safetensors"):
        ours, theirs = (mx.load(str(folder / name)) for folder in (out, runs[bits]))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[n], theirs[n]) for n in ours)


def test_another_base_is_found_when_a_run_is_resumed(base, text, cli, tmp_path):
    own, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, own)
    options = ("--init", own, "--lora", "--steps", 1, *QUICK, *NO_SPLIT)
    assert cli("train", text, *options, "--out", out).status == 0
    shutil.copytree(base, tmp_path / "touched")
    model = weights.load(own)
    model.model.layers[0].mlp.up_proj.weight *= 1.01
    weights.save_weights(own / "model.safetensors", weights.to_disk(model))
    done = cli("train", "--out", out, "--resume")
    assert done.status == 1
    assert "not the model that this run began with" in done.error


@pytest.mark.parametrize(("bits", "dequantize"), [(None, False), (4, True), (8, True), (8, False)])
def test_a_fused_model_is_the_base_and_its_adapter(runs, base, bits, dequantize, cli, tmp_path):
    folder = base
    if bits:
        folder = tmp_path / "quantized"
        convert(base, folder, mx.float32, Quantization(bits))
    out = tmp_path / "fused"
    options = ("--dequantize",) if dequantize else ()
    done = cli("fuse", "--model", folder, "--adapter", runs[bits], "--out", out, *options, "--json")
    assert done.status == 0, done.err
    table = json.loads((out / "config.json").read_text())
    told = json.loads(done.out.splitlines()[-1])
    assert (told["model"], told["quantization"]) == (str(out), table.get("quantization"))
    assert told["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert ("quantization" in table) == (bits is not None and not dequantize)
    close = 0.2 if bits and not dequantize else 2e-3  # rounded to 8 bits again, or by the product
    np.testing.assert_allclose(logits(out), logits(folder, runs[bits]), atol=close)
    again = cli("fuse", "--adapter", runs[bits], "--out", out)
    assert again.status == 2
    assert "is there already" in again.error


def test_a_release_is_a_base_too(base, text, cli, tmp_path):
    """Mistral's own layout: params.json, consolidated.safetensors, rows of queries and keys in another order."""
    release = tmp_path / "release"
    release.mkdir()
    table = json.loads((base / "config.json").read_text())
    (release / "params.json").write_text(json.dumps({
        "dim": table["hidden_size"], "n_layers": table["num_hidden_layers"], "head_dim": table["head_dim"],
        "hidden_dim": table["intermediate_size"], "n_heads": table["num_attention_heads"],
        "n_kv_heads": table["num_key_value_heads"], "norm_eps": table["rms_norm_eps"],
        "vocab_size": table["vocab_size"], "rope_theta": table["rope_theta"], "tied_embeddings": True,
        "max_position_embeddings": table["max_position_embeddings"],
    }))  # fmt: skip
    shutil.copy(base / "tokenizer.model", release / "tokenizer.model.v3")
    stored = {}
    for name, w in mx.load(str(base / "model.safetensors")).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            D = table["head_dim"]
            w = w.reshape(-1, 2, D // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        stored[RELEASE.disk_name(name)] = mx.contiguous(w)
    mx.save_safetensors(str(release / "consolidated.safetensors"), stored)
    out = tmp_path / "run"
    options = ("--lora", "--rank", 2, "--bits", 4, "--steps", 3, *QUICK, *NO_SPLIT)
    done = cli("train", text, "--init", release, *options, "--out", out)
    assert done.status == 0, done.err
    np.testing.assert_allclose(logits(release, out), logits(base, out), atol=1e-4)
    assert json.loads((out / "adapter_config.json").read_text())["lora_parameters"]["rank"] == 2


def test_every_verb_takes_an_adapter(runs, base, cli):
    out = runs[None]
    prompt = ("--prompt", "PUBLIC FUNC", "--max-tokens", 8, "--json")
    by_folder = json.loads(cli("generate", "--model", out, *prompt).out.splitlines()[-1])
    by_option = json.loads(cli("generate", "--model", base, "--adapter", out, *prompt).out.splitlines()[-1])
    plain = json.loads(cli("generate", "--model", base, *prompt).out.splitlines()[-1])
    assert by_folder["token_ids"] == by_option["token_ids"] != plain["token_ids"]
    found = json.loads(cli("eval", "--adapter", out, "--cursors", 2, "--json").out.splitlines()[-1])
    best = min(r["val_loss"] for r in map(json.loads, (out / "training" / "metrics.jsonl").open()) if "val_loss" in r)
    assert found["val_loss"] == pytest.approx(best, abs=2e-3)
    assert cli("complete", "--adapter", out, stdin=b"PUBLIC FUNC Area_3").status == 0


def test_all_weights_of_a_small_model_can_go_on_training(base, text, cli, tmp_path):
    out = tmp_path / "run"
    done = cli("train", text, "--init", base, "--steps", 6, *QUICK, *NO_SPLIT, "--out", out)
    assert done.status == 0, done.err
    losses = [r["loss"] for r in steps(out)]
    assert losses[-1] < losses[0] - 0.5
    assert np.abs(logits(out) - logits(base)).max() > 0.5


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--lora",), 2, "go with --init"),
        (("--init", "BASE", "--rank", 2), 2, "go with --lora"),
        (("--init", "BASE", "--set", "init.bits=4"), 2, "init.bits goes with init.lora"),
        (("--init", "BASE", "--config", "tiny"), 2, "[model] goes without init.model"),
        (("--init", "BASE", "--set", "tokenizer.kind=byte"), 2, "[tokenizer] goes without init.model"),
        (("--init", "BASE", "--lora", "--set", "init.layers=9"), 2, "init.layers (9) is more than the model has (2)"),
        (("--init", "ADAPTER"), 2, "`mlxgpt fuse` makes a model of it"),
        (("--init", "nowhere/at-all/x"), 2, "there is no model"),
        (("--init", "QUANTIZED"), 2, "--lora trains an adapter beside them"),
        (("--init", "QUANTIZED", "--lora", "--bits", 4), 2, "is quantized already"),
    ],
)
def test_what_cannot_be_tuned_is_said(runs, base, text, cli, tmp_path, options, status, words):
    if "QUANTIZED" in options:
        convert(base, tmp_path / "quantized", mx.float32, Quantization(8))
    places = {"BASE": base, "ADAPTER": runs[None], "QUANTIZED": tmp_path / "quantized"}
    done = cli("train", text, *(places.get(o, o) for o in options), "--steps", 1, *QUICK, "--out", tmp_path / "run")
    assert done.status == status, done.err
    assert words in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fine_tune_type": "dora"}, "'dora' is not supported"),
        ({"lora_parameters": {"rank": 0, "scale": 1, "dropout": 0}}, "does not describe an adapter"),
        ({"lora_parameters": {"rank": 4, "scale": 1, "dropout": 0}}, "is not for this model"),
        ({"num_layers": 1}, "is not for this model"),
        ({"num_layers": "all"}, "does not describe an adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_clear_line(runs, base, tmp_path, change, words):
    folder = tmp_path / "adapter"
    shutil.copytree(runs[None], folder, ignore=shutil.ignore_patterns("training"))
    table = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(table | change))
    with pytest.raises(Error, match=words):
        weights.load_with_tokenizer(base, adapter=folder)


def test_mlx_lms_own_adapters_are_read(base, tmp_path):
    """Fewer blocks and two kinds of layers in each, as its configuration may say."""
    pytest.importorskip("mlx_lm")
    from mlx.utils import tree_flatten
    from mlx_lm import load
    from mlx_lm.tuner.utils import linear_to_lora_layers

    theirs, _ = load(str(base))
    keys = ["self_attn.q_proj", "mlp.down_proj"]
    parameters = {"rank": 3, "scale": 5.0, "dropout": 0.0, "keys": keys}
    theirs.freeze()
    linear_to_lora_layers(theirs, 1, parameters)
    tensors = {n: mx.random.normal(p.shape) * 0.1 for n, p in tree_flatten(theirs.trainable_parameters())}
    theirs.load_weights(list(tensors.items()), strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), tensors)
    table = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(table))
    np.testing.assert_allclose(logits(base, tmp_path), np.array(theirs(TOKENS)), atol=2e-3)
    with pytest.raises(Error, match="does not name the model it is for"):
        adapters.locate(str(tmp_path))
