"""The order of a repository: each file after those it imports, near them, the same every time."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt.config import DataConfig
from mlxgpt.data.corpus import collect, find

RULES = DataConfig(near_duplicates=0.0, validation_fraction=0.0, order="imports")


def ordered(root: Path, rules: DataConfig = RULES) -> list[str]:
    return [document.path.relative_to(root).as_posix() for document in collect(*find([root], rules), rules).documents]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n# {name}\n")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "import z.util as u, b", "b.py": "x = 1", "z/util.py": "y = 1"}, ["z/util.py", "b.py", "a.py"]),
        ({"a.py": "from .pkg import b", "b/__init__.py": "", "pkg/b.py": ""}, ["pkg/b.py", "a.py", "b/__init__.py"]),
        ({"a.py": "from pkg import name", "pkg/__init__.py": "name = 1"}, ["pkg/__init__.py", "a.py"]),
        ({"a.c": '#include "lib/z.h"\n#include <stdio.h>', "lib/z.h": ""}, ["lib/z.h", "a.c"]),
        ({"a.zig": 'const z = @import("z.zig");\nconst std = @import("std");', "z.zig": ""}, ["z.zig", "a.zig"]),
        ({"a.js": 'const z = require("./lib/z")', "lib/z.js": ""}, ["lib/z.js", "a.js"]),
        ({"a.ts": 'import { x } from "../lib/z";', "lib/z.ts": ""}, ["lib/z.ts", "a.ts"]),
        ({"a.ts": "import {\n  x,\n} from './z';", "z.ts": ""}, ["z.ts", "a.ts"]),
        ({"a.rs": "pub mod z;\nuse crate::y::Thing;", "y.rs": "", "z.rs": ""}, ["z.rs", "y.rs", "a.rs"]),
        ({"A.java": "import com.x.Z;", "com/x/Z.java": ""}, ["com/x/Z.java", "A.java"]),
        ({"a.rb": "require_relative 'lib/z'", "lib/z.rb": ""}, ["lib/z.rb", "a.rb"]),
        ({"a.py": "# we import nothing here, z", "z.py": ""}, ["a.py", "z.py"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_imported_comes_first(tmp_path, files, expected):
    write(tmp_path, files)
    assert ordered(tmp_path) == expected


def test_of_two_files_with_one_name_the_nearer_is_meant(tmp_path):
    write(tmp_path, {"one/util.py": "", "two/util.py": "", "two/b.py": "import util", "zzz.py": "from one import util"})
    assert ordered(tmp_path) == ["one/util.py", "two/util.py", "two/b.py", "zzz.py"]
    write(tmp_path, {"a.py": "from two import util"})
    assert ordered(tmp_path)[:2] == ["two/util.py", "a.py"]


def test_the_order_by_name_stays_where_it_is_asked_for(tmp_path):
    write(tmp_path, {"a.py": "import z", "z.py": ""})
    assert ordered(tmp_path, DataConfig(near_duplicates=0.0, validation_fraction=0.0)) == ["a.py", "z.py"]


@settings(deadline=None, max_examples=40)
@given(edges=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_every_file_is_there_once_and_without_circles_after_its_imports(edges, tmp_path_factory):
    root = tmp_path_factory.mktemp("graph")
    below = {n: [b for a, b in sorted(edges) if a == n] for n in range(8)}
    write(root, {f"m{n}.py": "\n".join(f"import m{b}" for b in below[n]) for n in range(8)})
    order = [int(name[1]) for name in ordered(root)]
    assert sorted(order) == list(range(8))
    assert ordered(root) == [f"m{n}.py" for n in order]
    if all(a > b for a, b in edges):
        assert all(order.index(b) < order.index(a) for a, b in edges)


def test_held_out_files_stay_where_they_are(tmp_path):
    write(tmp_path, {f"f{n:02}.py": f"import f{(n * 7) % 30:02}" for n in range(30)})
    by_name, by_import = (
        collect(*find([tmp_path], rules), rules).split("validation")
        for rules in (DataConfig(near_duplicates=0, validation_fraction=0.3), DataConfig(
            near_duplicates=0, validation_fraction=0.3, order="imports"))
    )  # fmt: skip
    assert by_name == by_import != []
