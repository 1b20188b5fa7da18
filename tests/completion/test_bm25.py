"""BM25 over chunks of lines: the formula, what it finds in real code, and that an update is as good as a new start."""

import math
import random

import pytest

from mlxgpt.completion.bm25 import K1, LINES, B, Bm25, terms_of


@pytest.fixture(scope="module")
def documents(code) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(code.glob("*.py"))]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (b"getHTTPResponse_v2", [b"get", b"http", b"response", b"v", b"2"]),
        (b"def parse_args(self):", [b"def", b"parse", b"args", b"self"]),
        ("größe".encode(), [b"gr", "öß".encode(), b"e"]),
        (b"+ - ()", []),
    ],
)
def test_identifiers_are_split(text, terms):
    assert terms_of(text) == terms


def test_the_scores_are_the_formulas(monkeypatch):
    """The order of three chunks is that of scores computed here, term by term."""
    texts = {"a": b"alpha beta beta gamma\n", "b": b"alpha alpha delta\n", "c": b"beta epsilon zeta eta theta iota\n"}
    query = b"alpha beta theta"
    split = {name: terms_of(text) for name, text in texts.items()}
    average = sum(map(len, split.values())) / 3

    def score(name: str) -> float:
        total = 0.0
        for term in terms_of(query):
            n, tf = sum(term in its for its in split.values()), split[name].count(term)
            norm = K1 * (1 - B + B * len(split[name]) / average)
            total += math.log(1 + (3 - n + 0.5) / (n + 0.5)) * tf / (norm + tf)
        return total

    expected = sorted(texts, key=score, reverse=True)
    assert [chunk.name for chunk in Bm25(texts.items()).search(query, 3)] == expected
    assert len({round(score(name), 6) for name in texts}) == 3


def test_a_line_finds_the_chunk_it_is_from(documents):
    found, tried = 0, 0
    index = Bm25(documents)
    draw = random.Random(0)
    for name, data in documents:
        lines = data.splitlines(keepends=True)
        for _ in range(5):
            start = draw.randrange(0, max(1, len(lines) - 4))
            query = b"".join(lines[start : start + 4])
            if len(terms_of(query)) >= 8:
                tried += 1
                chunk = b"".join(lines[start // LINES * LINES :][:LINES])
                found += chunk in [c.text for c in index.search(query, 3) if c.name == name]
    assert tried > 20
    assert found >= 0.9 * tried


def test_where_to_look_can_be_said(documents):
    index = Bm25(documents)
    query = b"def glob(pathname, root_dir): return list(iglob(pathname))"
    assert index.search(query, 1)[0].name == "glob.py"
    assert {c.name for c in index.search(query, 5, within={"shlex.py", "cmd.py"})} <= {"shlex.py", "cmd.py"}
    assert "glob.py" not in {c.name for c in index.search(query, 5, besides="glob.py")}
    assert index.search(b"qqqq", 5) == index.search(b"", 5) == []
    assert index.search(query, 0) == []


def test_updates_end_where_a_new_start_would(documents):
    index = Bm25(documents[:4])
    for name, data in documents[4:]:
        index.update(name, data)
    for name, data in documents[::2]:
        index.update(name, b"gone = 1\n" + data)
        index.update(name, data)
    index.update("extra.py", b"import nothing\n")
    index.update("extra.py", None)
    index.update("never there.py", None)
    fresh = Bm25(documents)
    assert len(index) == len(fresh)
    for _, data in documents:
        query = data[200:600]
        assert index.search(query, 1) == fresh.search(query, 1)
    for name, _ in documents:
        index.update(name, None)
    assert len(index) == 0
    assert index.search(documents[0][1], 3) == []
