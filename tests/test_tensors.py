"""safetensors headers: what is read is what the file holds, and whatever lies is refused in one line."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxgpt import tensors
from mlxgpt.errors import Error


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def read_or_one_line(read):
    """What `read()` returns, or None where it refuses, which it must do in one line of Error."""
    message = ""
    try:
        return read()
    except Error as error:
        message = str(error)
    assert message
    assert "\n" not in message


INDEX = "model.safetensors.index.json"


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_mlx_writes(tmp_path):
    arrays = {
        "a": mx.arange(6, dtype=mx.float32).reshape(2, 3),
        "b.c": mx.ones((5,), mx.bfloat16),
        "e": mx.zeros((0, 3)),
    }
    mx.save_safetensors(str(tmp_path / "m.safetensors"), arrays, {"format": "pt"})
    header = tensors.read_header(tmp_path / "m.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in header.items()} == {
        "a": ("F32", (2, 3)), "b.c": ("BF16", (5,)), "e": ("F32", (0, 3))
    }  # fmt: skip
    read = tensors.read([tmp_path / "m.safetensors"])
    assert all(mx.array_equal(read[n], a) for n, a in arrays.items())


LIES = {
    "header of 2^63": lambda p: write(p, {"a": entry()}, bytes(8), length=1 << 63),
    "header beyond the file": lambda p: write(p, {"a": entry()}, bytes(8), length=1000),
    "zero length": lambda p: p.write_bytes(b""),
    "four bytes": lambda p: p.write_bytes(b"abcd"),
    "not JSON": lambda p: write(p, b"{nope"),
    "deep JSON": lambda p: write(p, b'{"a":' + b"[" * 100_000),
    "a list": lambda p: write(p, [1, 2]),
    "not UTF-8": lambda p: write(p, b"\xff\xfe"),
    "data cut short": lambda p: write(p, {"a": entry()}, bytes(7)),
    "data too long": lambda p: write(p, {"a": entry()}, bytes(9)),
    "overlap": lambda p: write(p, {"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "gap": lambda p: write(p, {"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "a dtype that lies": lambda p: write(p, {"a": entry(dtype="F16")}, bytes(8)),
    "an unknown dtype": lambda p: write(p, {"a": entry(dtype="F7")}, bytes(8)),
    "negative offsets": lambda p: write(p, {"a": entry(offsets=(-8, 0))}, bytes(8)),
    "reversed offsets": lambda p: write(p, {"a": entry(offsets=(8, 0))}, bytes(8)),
    "a huge shape": lambda p: write(p, {"a": entry(shape=(1 << 61, 1 << 61))}, bytes(8)),
    "a huge shape of nothing": lambda p: write(p, {"a": entry(shape=(1 << 61, 0), offsets=(0, 0))}),
    "a shape of floats": lambda p: write(p, {"a": entry(shape=(2.0,))}, bytes(8)),
    "no offsets": lambda p: write(p, {"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses_files_that_lie(tmp_path, lie):
    path = tmp_path / "model.safetensors"
    LIES[lie](path)
    with pytest.raises(Error, match=r"model\.safetensors") as caught:
        tensors.read([path])
    assert "\n" not in str(caught.value)


names = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*tensors.BITS, "X"]) | values,
     "shape": st.lists(st.integers(-1, 5), max_size=3) | values,
     "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | values}
)  # fmt: skip


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(names, entries | values, max_size=4) | values, data=st.binary(max_size=64))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    path = write(tmp_path / "m.safetensors", header, data)
    found = read_or_one_line(lambda: tensors.read_header(path))
    assert found is None or sum(e.end - e.begin for e in found.values()) == len(data)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), bit=st.integers(0, 7), cut=st.integers(0, 600) | st.none())
def test_flipped_bits_and_cuts_never_crash(tmp_path, at, bit, cut):
    path = tmp_path / "m.safetensors"
    mx.save_safetensors(str(path), {"layer.0.weight": mx.ones((8, 8)), "layer.1.bias": mx.zeros((3,), mx.float16)})
    data = bytearray(path.read_bytes()[:cut])
    if data:
        data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    read_or_one_line(lambda: mx.eval(tensors.read([path])))


def index(folder: Path, table: object) -> Path:
    (folder / INDEX).write_text(json.dumps(table))
    return folder


def test_shards_follow_the_index(tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors", "model-old.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {name: mx.ones(1)})
    index(tmp_path, {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}})
    assert [p.name for p in tensors.shards(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "",
        "..",
        "gone.safetensors",
        "x.bin",
        "a\0.safetensors",
    ],
)
def test_an_index_cannot_name_other_files(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    for outside in (tmp_path / "x.safetensors", folder / "x.bin"):
        mx.save_safetensors(str(folder / "y.safetensors"), {"a": mx.ones(1)})
        outside.write_bytes((folder / "y.safetensors").read_bytes())
    with pytest.raises(Error, match="names"):
        tensors.shards(index(folder, {"weight_map": {"a": name}}))


@pytest.mark.parametrize("table", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, 7])
def test_an_index_must_map_names_to_files(tmp_path, table):
    with pytest.raises(Error, match="weight_map"):
        tensors.shards(index(tmp_path, table))


def test_a_folder_of_pickles_is_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(Error, match=r"pytorch_model\.bin is a pickle"):
        tensors.shards(tmp_path)


def test_one_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {"w": mx.ones(1)})
    with pytest.raises(Error, match="another file"):
        tensors.read(tensors.shards(tmp_path))
