"""Recipes: every key is typed, bounded and documented, and a mistake names the key that was meant."""

import dataclasses
import json
import tomllib
from contextlib import suppress
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxgpt import config
from mlxgpt.config import SECTIONS, load_recipe, parse_setting, recipe_names
from mlxgpt.errors import UsageError
from mlxgpt.models import ARCHITECTURES, config_from_table

GPT2 = '[model]\ntype = "gpt2"\n'
TYPED = [*SECTIONS.items(), *(("model", module.Config) for module in ARCHITECTURES.values())]


def refused(name: str, *settings: str) -> str:
    """The one line that a recipe and its model are refused with."""
    with pytest.raises(UsageError) as caught:
        config_from_table(load_recipe(name, settings).model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe's text to a file and returns its path."""

    def write(text: str) -> str:
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "my.toml")

    return write


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_a_run(name):
    loaded = load_recipe(name, ["init.model=x"] if name == "finetune" else [])
    if name == "finetune":
        assert "--init" in config.read_recipe_text(name)
        return
    model = config_from_table(loaded.model)
    assert isinstance(model, ARCHITECTURES[loaded.model["type"]].Config)
    assert loaded.train.sequence_length <= model.context
    first, command = config.read_recipe_text(name).splitlines()[:2]
    assert first.startswith("# ")
    assert any(f"--config {name}" in line for line in config.read_recipe_text(name).splitlines()), command


def test_the_recipes_ship():
    assert set(recipe_names()) >= {
        "tiny", "shakespeare_char_cpu", "shakespeare_char_gpu", "gpt2_decoder", "zig_mistral", "gpt2_124m",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "steps", "batch"),
    [
        ("shakespeare_char_cpu", (4, 4, 128, 64, False, 0.0), 2000, 12),
        ("shakespeare_char_gpu", (6, 6, 384, 256, False, 0.2), 5000, 64),
    ],
)
def test_nanogpts_settings_are_exact(name, shape, steps, batch):
    loaded = load_recipe(name, ["init.model=x"] if name == "finetune" else [])
    if name == "finetune":
        assert "--init" in config.read_recipe_text(name)
        return
    model = config_from_table(loaded.model)
    assert (model.n_layer, model.n_head, model.n_embd, model.n_positions, model.bias, model.dropout) == shape
    o, t = loaded.optimizer, loaded.train
    assert (o.lr, o.min_lr, o.warmup_steps, o.beta1, o.beta2, o.weight_decay, o.clip, o.schedule) == (
        1e-3, 1e-4, 100, 0.9, 0.99, 0.1, 1.0, "cosine",
    )  # fmt: skip
    assert (t.steps, t.batch_size, t.accumulation, t.sequence_length) == (steps, batch, 1, shape[3])
    assert (loaded.tokenizer.kind, loaded.tokenizer.byte_fallback) == ("char", False)
    assert (loaded.data.split, loaded.data.validation_fraction, loaded.data.max_validation_bytes) == ("tail", 0.1, 0)


def test_a_recipe_is_a_table_again():
    loaded = load_recipe("zig_mistral", ["train.seed=5"])
    table = json.loads(json.dumps(config.to_table(loaded)))
    again = {name: config.from_table(cls, table[name], name) for name, cls in SECTIONS.items()}
    assert config.Recipe(model=table["model"], **again) == loaded


def test_what_a_file_leaves_out_has_its_default(recipe):
    loaded = load_recipe(recipe(GPT2 + "[train]\nsteps = 7\n"))
    assert loaded.train == config.TrainConfig(steps=7)
    assert (loaded.data, loaded.tokenizer) == (config.DataConfig(), config.TokenizerConfig())


def test_every_key_is_documented():
    text = config.document_keys()
    for section, cls in TYPED:
        for field in dataclasses.fields(cls):
            assert len(field.metadata["doc"]) > 4, f"{section}.{field.name}"
            assert f"  {field.name} = {field.default!r}  (" in text
            assert field.metadata["doc"] in text
    assert "MISSING" not in text
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        "[tokenizer]", "[data]", "[optimizer]", "[train]", "[init]",
        '[model] with [type = "gpt2"]', '[model] with [type = "mistral"]', '[model] with [type = "qwen3"]',
    ]  # fmt: skip


@pytest.mark.parametrize("cls", [cls for _, cls in TYPED], ids=lambda cls: cls.__module__ + cls.__name__)
def test_defaults_are_of_their_own_types(cls):
    table = {k: v for k, v in dataclasses.asdict(cls()).items() if v is not None}
    assert config.from_table(cls, table, "x") == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), dataclasses.fields(cls)[0].name, 1)


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.step=5", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("train.batchsize=5", "unknown key 'train.batchsize'; did you mean 'train.batch_size'?"),
        ("optimiser.lr=1", "unknown key 'optimiser.lr'; did you mean 'optimizer.lr'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("n_layer=1", "unknown key 'n_layer'; did you mean 'model.n_layer'?"),
        ("modle.n_layer=1", "unknown key 'modle.n_layer'; did you mean 'model.n_layer'?"),
        ("learning_rat=1", "unknown key 'learning_rat'; known: tokenizer.kind, "),
        ("model.n_layers=1", "unknown key 'model.n_layers'; did you mean 'model.n_layer'?"),
        ("model.hidden_size=8", "unknown key 'model.hidden_size'"),
        ("train.a.b=1", "unknown key 'train.a.b'"),
        ("train=1", "unknown key 'train'"),
        ("=1", "unknown key ''"),
        ("train.steps", "--set takes key=value, not 'train.steps'"),
        ("model.type=gpt3", "model.type 'gpt3' is unknown; did you mean 'gpt2'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(recipe, setting, message):
    assert refused(recipe(GPT2), setting).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 5\n", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("[optimizr]\nlr = 5\n", "unknown section [optimizr]; did you mean 'optimizer'?"),
        ("train = 5\n", "'train' must be a section: [train]"),
        ("[train\n", "not valid TOML: "),
        ("[data]\nsplit = 1\nsplit = 2\n", "not valid TOML: "),
    ],
)
def test_a_files_mistakes_are_named(recipe, text, message):
    before, after = (text, GPT2) if not text.startswith("[") else (GPT2, text)
    assert message in refused(recipe(before + after))


def test_a_recipe_without_a_model_is_refused(recipe):
    for text in ("", "[train]\nsteps = 1\n", "[model]\nn_layer = 2\n"):
        assert refused(recipe(text)).endswith("[model] must say its type: gpt2, mistral or qwen3")
    assert load_recipe(recipe("[train]\nsteps = 1\n"), ["model.type=gpt2"]).model == {"type": "gpt2"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps=1.5", "train.steps must be a whole number, not 1.5"),
        ("train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("train.steps=true", "train.steps must be a whole number, not True"),
        ("train.steps=0", "train.steps must be at least 1, not 0"),
        ("train.batch_warmup=1.5", "train.batch_warmup must be at most 1"),
        ("train.sequence_warmup=1.5", "train.sequence_warmup must be at most 1"),
        ("train.minutes=-1", "train.minutes must be at least 0, not -1"),
        ("train.minutes=inf", "train.minutes must be a number, not inf"),
        ("train.dtype=float16", "train.dtype must be one of 'auto', 'float32', 'bfloat16', not 'float16'"),
        ("optimizer.lr=nan", "optimizer.lr must be a number, not nan"),
        (f"optimizer.lr={10**400}", f"optimizer.lr must be a number, not {10**400}"),
        ("train.seed=4294967296", "train.seed must be below 4294967296"),
        ("optimizer.lr=true", "optimizer.lr must be a number, not True"),
        ("optimizer.lr=1e-5", "optimizer.min_lr must not exceed optimizer.lr"),
        ("optimizer.beta2=1", "optimizer.beta1 and optimizer.beta2 must be below 1"),
        ("optimizer.decay_fraction=1.1", "optimizer.decay_fraction must be at most 1"),
        ("data.validation_fraction=1", "data.validation_fraction must be below 1"),
        ("data.near_duplicates=1.5", "data.near_duplicates must be at most 1"),
        ("data.split=[1]", "data.split must be one of 'file', 'tail', not [1]"),
        ("tokenizer.byte_fallback=1", "tokenizer.byte_fallback must be true or false, not 1"),
        ("tokenizer.path=5", "tokenizer.path must be a string, not 5"),
        ("tokenizer.vocab_size=299", "tokenizer.vocab_size must be at least 300, not 299"),
        ("model.n_head=5", "model.n_embd (128) is not a multiple of n_head (5)"),
        ("model.dropout=1", "model.dropout must be below 1"),
        ("model.n_layer=0", "model.n_layer must be at least 1, not 0"),
    ],
)
def test_wrong_types_and_values_out_of_range_are_refused(setting, message):
    assert refused("gpt2_decoder", setting) == message


def test_a_recipe_that_is_not_there(tmp_path, recipe):
    assert refused("tinny") == "no configuration is called 'tinny'; did you mean 'tiny'? (or give a .toml file)"
    assert refused("nothing.toml") == "no such configuration file: nothing.toml"
    assert refused(str(tmp_path)) == f"no such configuration file: {tmp_path}"
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    assert "latin.toml cannot be read: 'utf-8'" in refused(str(tmp_path / "latin.toml"))


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.steps=5", 5),
        (" train.steps = 600_000 ", 600_000),
        ("optimizer.lr=3e-4", 3e-4),
        ("optimizer.lr=1", 1),
        ("tokenizer.byte_fallback=false", False),
        ("tokenizer.kind=char", "char"),
        ('tokenizer.kind="char"', "char"),
        ("tokenizer.path=", ""),
        ("tokenizer.path=/a b/c=d.json", "/a b/c=d.json"),
        ("tokenizer.path='5'", "5"),
        ("tokenizer.path=one\ntwo = 2", "one\ntwo = 2"),
        ("train.steps=1\nother = 2", "1\nother = 2"),
    ],
)
def test_settings_are_toml_or_plain_text(setting, value):
    section, name, parsed = parse_setting(setting)
    assert f"{section}.{name}" == setting.partition("=")[0].strip()
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_quoted_setting_is_any_string(text):
    assert parse_setting(f"tokenizer.path={json.dumps(text, ensure_ascii=False)}")[2] == text


@given(key=st.sampled_from([f"{section}.{f.name}" for section, cls in TYPED for f in dataclasses.fields(cls)]),
       value=st.text() | st.integers().map(str) | st.floats().map(str))  # fmt: skip
def test_any_setting_is_taken_or_refused_in_one_way(key, value):
    with suppress(UsageError):
        config_from_table(load_recipe("tiny", [f"{key}={value}"]).model)


def test_settings_win_over_the_file_and_the_last_one_wins():
    loaded = load_recipe("tiny", ["train.steps=5", "optimizer.lr=1", "train.steps=6", "model.hidden_size=64"])
    assert (loaded.train.steps, loaded.optimizer.lr, loaded.model["hidden_size"]) == (6, 1.0, 64)
    assert isinstance(loaded.optimizer.lr, float), "a whole number is a number"
    shipped = tomllib.loads((files(config.RECIPES) / "tiny.toml").read_text(encoding="utf-8"))
    assert loaded.train.batch_size == shipped["train"]["batch_size"]
