"""From a cursor to a prompt: where the file is cut, what fits, and what is taken back to be spelled again."""

import random

import pytest

from mlxgpt import weights
from mlxgpt.completion import prompt as prompts
from mlxgpt.completion.prompt import MOST_HEALED, build, split_at
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import CharTokenizer


@pytest.fixture(scope="module")
def bpe(trained):
    return weights.load_with_tokenizer(trained)[1]


@pytest.fixture(scope="module")
def source(code) -> bytes:
    return (code / "shlex.py").read_bytes()


class Table(CharTokenizer):
    """Longest match over a few tokens, so that a test can say what is healed."""

    def __init__(self, *tokens: bytes, bos: bool = True) -> None:
        super().__init__("")
        self.token_bytes = [*(bytes([b]) for b in range(256)), *tokens, b""]
        self.bos_id = len(self.token_bytes) - 1 if bos else None
        self.eos_id = None

    def encode(self, data: str | bytes) -> list[int]:
        data = data.encode() if isinstance(data, str) else data
        ids = []
        while data:
            matches = [i for i, token in enumerate(self.token_bytes) if token and data.startswith(token)]
            ids.append(max(matches, key=lambda i: len(self.token_bytes[i])))
            data = data[len(self.token_bytes[ids[-1]]) :]
        return ids


@pytest.mark.parametrize("budget", [1, 5, 40, 10_000])
def test_the_prompt_and_the_remainder_are_the_end_of_the_prefix(bpe, source, budget):
    draw = random.Random(0)
    for cut in [*draw.sample(range(1, len(source)), 60), len(source)]:
        prefix = source[:cut]
        prompt = build(bpe, prefix, budget)
        assert 1 <= len(prompt.ids) <= budget
        assert prefix.endswith(bpe.decode(prompt.ids) + prompt.remainder)
        healed = len(bpe.encode(prefix)) - len(bpe.encode(prefix[: len(prefix) - len(prompt.remainder)]))
        assert healed <= MOST_HEALED
        if budget == 10_000:
            assert prompt.ids[0] == bpe.bos_id
            assert bpe.decode(prompt.ids) + prompt.remainder == prefix


def test_a_prompt_that_is_cut_begins_with_a_line(bpe, source):
    lines = 0
    for cut in range(2000, 6000, 77):
        prefix = source[:cut]
        prompt = build(bpe, prefix, 120)
        text = bpe.decode(prompt.ids) + prompt.remainder
        before = prefix[: len(prefix) - len(text)]
        assert bpe.bos_id not in prompt.ids
        assert len(prompt.ids) > 40  # no more than half is given up for a whole line
        lines += before.endswith(b"\n")
    assert lines == len(range(2000, 6000, 77))


def test_one_endless_line_keeps_its_end(bpe):
    prefix = b"x = [" + b"123, " * 5000
    prompt = build(bpe, prefix, 50)
    assert len(prompt.ids) > 40
    assert prefix.endswith(bpe.decode(prompt.ids) + prompt.remainder)
    newline_last = build(bpe, prefix + b"\n", 50)
    assert len(newline_last.ids) == 50
    assert newline_last.remainder == b""


@pytest.mark.parametrize(
    ("prefix", "remainder"),
    [
        (b"return", b"return"),  # it may become returns
        (b"a ret", b" ret"),  # as above, in three tokens: the whole word goes back, and the space before it
        (b"if  ", b"  "),  # spaces join what follows
        (b"x\n", b""),  # nothing else begins with or extends a newline: it is final
        (b"x\n ret", b" ret"),  # the indentation with the word, and no further than the line
        (b"a.", b""),
        (b"f(", b"f("),  # f(x is a token
        ("é".encode()[:1], "é".encode()[:1]),
    ],
)
def test_what_another_token_could_extend_is_taken_back(prefix, remainder):
    table = Table(b"return", b"returns", b"re", b"f(", b"f(x", b"th", b"  ", b"   ", "é".encode())
    prompt = build(table, prefix, 100)
    assert prompt.remainder == remainder
    assert table.decode(prompt.ids) + prompt.remainder == prefix
    assert prompt.ids[0] == table.bos_id


def test_no_line_before_the_cursors_is_taken_back():
    """Not even where the word to heal begins in a token that spans lines."""
    table = Table(b"\nab", b"re", b"return")
    assert build(table, b"x\nabre", 100).remainder == b"re"


def test_no_more_than_eight_tokens_are_taken_back():
    table = Table(b"ab")
    prompt = build(table, b"b" + b"a" * 30, 100)
    assert prompt.remainder == b"a" * MOST_HEALED


def test_without_an_opening_token_one_token_stays_to_stand_on():
    table = Table(b"return", b"returns", b"re", bos=False)
    assert build(table, b"return", 10) == prompts.Prompt(table.encode(b"return"), b"")
    assert build(table, b"rereture", 10) == prompts.Prompt(table.encode(b"re"), b"reture")
    with pytest.raises(Error, match="nothing before the cursor"):
        build(table, b"", 10)


def test_an_empty_prefix_is_the_opening_token(bpe):
    assert build(bpe, b"", 10) == prompts.Prompt([bpe.bos_id], b"")


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        (tmp_path / "f.py").write_bytes(content)
        return tmp_path / "f.py"

    return write


@pytest.mark.parametrize(
    ("content", "line", "column", "prefix", "suffix"),
    [
        (b"ab\ncd\n", 1, 1, b"", b"ab\ncd\n"),
        (b"ab\ncd\n", 1, 3, b"ab", b"\ncd\n"),
        (b"ab\ncd\n", 2, 2, b"ab\nc", b"d\n"),
        (b"ab\ncd\n", 3, 1, b"ab\ncd\n", b""),  # the empty line after the last newline
        (b"ab\ncd", 2, 3, b"ab\ncd", b""),  # no newline at the end
        (b"", 1, 1, b"", b""),
        (b"ab\r\ncd\r\n", 1, 3, b"ab", b"\r\ncd\r\n"),  # at the end of a line, before its CR
        (b"ab\r\ncd\r\n", 2, 1, b"ab\r\n", b"cd\r\n"),
        ("x = 'é→𝄞'\n".encode(), 1, 9, "x = 'é→𝄞".encode(), b"'\n"),  # columns are characters
        (b"\xff\xfea\n", 1, 3, b"\xff\xfe", b"a\n"),  # and a byte that is not UTF-8 is one
        (b"a\n\n\nb", 3, 1, b"a\n\n", b"\nb"),
    ],
)
def test_a_file_is_split_at_line_and_column(file, content, line, column, prefix, suffix):
    path = file(content)
    assert split_at(path, line, column) == (prefix, suffix)
    assert prefix + suffix == content


@pytest.mark.parametrize(
    ("content", "line", "column", "words"),
    [
        (b"ab\ncd\n", 4, 1, "--line 4 is beyond the end of .*f.py, which has 3 lines"),
        (b"ab\ncd", 3, 1, "--line 3 is beyond the end"),
        (b"ab\ncd\n", 2, 4, "--column 4 is beyond the end of line 2 of .*f.py: 1 to 3"),
        (b"ab\r\n", 1, 4, "--column 4 is beyond the end of line 1"),
        ("é\n".encode(), 1, 3, "1 to 2"),
    ],
)
def test_a_place_that_is_not_there(file, content, line, column, words):
    with pytest.raises(UsageError, match=words):
        split_at(file(content), line, column)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(UsageError, match=f"{path} cannot be read: "):
            split_at(path, 1, 1)
