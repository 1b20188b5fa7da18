"""Where a block ends: by indentation and brackets, and before what is there already."""

import pytest

from mlxgpt.completion.postprocess import block, goes_on, indentation


@pytest.mark.parametrize(
    ("before", "text", "after", "kept"),
    [
        (b"def f", b"(x):\n    return x\n\ndef g():\n", b"\n", b"(x):\n    return x"),
        (b"    if a", b":\n        b()\n    else:\n        c()\n", b"\n", b":\n        b()"),
        (b"x = f(", b"\n    1,\n    2,\n)\ny = 2\n", b"\n", b"\n    1,\n    2,\n)"),
        (b"fn main() ", b"{\n    a();\n}\nfn b() {\n", b"\n", b"{\n    a();\n}"),
        (b"x = 1", b" + 2\ny = 3\n", b"\n", b" + 2"),
        (b"    ", b"a = 1\n    b = 2\n    return b\n\nx\n", b"\n", b"a = 1\n    b = 2\n    return b"),
        (b"    ", b"a = 1\nb = 2\n", b"\n", b"a = 1"),
        (b"def f():", b"\n    return 1\n", b"\n    return 1\n", b""),  # it is there already
        (b"if a:", b"\r\n    b()\r\nc()\r\n", b"\r\n", b"\n    b()"),
        (b"x", b"", b"", b""),
    ],
)
def test_a_block(before, text, after, kept):
    assert block(before, text, after) == kept


def test_a_block_does_not_go_on_for_ever():
    assert goes_on(b"if a", [b":", *[b"    b"] * 10])
    assert not goes_on(b"if a", [b":", *[b"    b"] * 15])


def test_tabs_indent_by_four():
    assert [indentation(line) for line in (b"", b"  a", b"\ta", b" \ta", b"\n")] == [0, 2, 4, 5, 0]
