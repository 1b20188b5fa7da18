"""What the model is shown beside the file: what is found, that it fits, and that it stays while one types."""

import pytest

from mlxgpt import backend, weights
from mlxgpt.completion import context, views
from mlxgpt.completion.context import Library, fill
from mlxgpt.completion.edits import LINES, MOST, Edits
from mlxgpt.completion.index import Index
from mlxgpt.completion.lexer import Lexer
from mlxgpt.completion.suggest import Suggester
from mlxgpt.completion.views import Views

HELPER = b"def frobnicate(widget, *, times):\n    return [widget.spin() for _ in range(times)]\n"
USER = b"from pkg import helper\n\n\ndef main(widget):\n    spins = helper.frobnicate(widget"


@pytest.fixture(scope="module")
def loaded(trained):
    return weights.load_with_tokenizer(trained, backend.compute_dtype(), compact=True)


@pytest.fixture
def library() -> Library:
    other = b"".join(b"def frobnicate_%d(widget): return widget\n" % i for i in range(40))
    return Library([("/p/other.py", other), ("/p/pkg/helper.py", HELPER), ("/p/pkg/main.py", USER)])


def test_what_is_imported_comes_first_and_the_file_itself_never(library):
    found = list(library.find(USER, "/p/pkg/main.py"))
    assert found[0] == ("/p/pkg/helper.py", HELPER)
    names = [name for name, _ in found]
    assert "/p/other.py" in names
    assert "/p/pkg/main.py" not in names
    assert len(found) == len(set(found))


def test_a_saved_file_is_found_as_it_is_now(library):
    library.update("/p/pkg/helper.py", b"def unrelated(): pass\n")
    assert HELPER not in [text for _, text in library.find(USER, "/p/pkg/main.py")]
    library.update("/p/pkg/helper.py", None)
    assert "/p/pkg/helper.py" not in library
    assert "/p/pkg/helper.py" not in [name for name, _ in library.find(USER, "/p/pkg/main.py")]


def test_no_more_text_is_held_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(context, "MOST_BYTES", len(HELPER) + 5)
    library = Library([("a", HELPER), ("b", HELPER)])
    assert len(library) == 1
    library.update("a", b"x = 1\n")
    library.update("b", b"y\n")
    assert "b" in library


def test_the_texts_are_the_indexs(loaded, code):
    _, tokenizer = loaded
    index = Index(tokenizer)
    texts = {str(path): path.read_bytes() for path in code.glob("*.py")}
    index.build(texts.items())
    assert dict(index.texts()) == texts
    assert len(Library.of_index(index)) == len(texts)
    assert len(Library.of_index(Index(Lexer()))) == 0


@pytest.mark.parametrize("room", [0, 15, 40, 90, 400])
def test_documents_are_whole_lines_the_best_one_last(loaded, library, room):
    _, tokenizer = loaded
    shown = fill(tokenizer, room, USER, "/p/pkg/main.py", [b"recent_edit = 1\n"], library)
    assert len(shown.ids) <= room
    pieces: list[list[int]] = [[]]
    for i in shown.ids:
        pieces[-1].append(i)
        if i == tokenizer.eos_id:
            pieces.append([])
    assert pieces.pop() == []
    known = [b"recent_edit = 1\n", HELPER, *(text for _, text in library.find(USER, "/p/pkg/main.py"))]
    for ids in pieces:
        assert ids[0] == tokenizer.bos_id  # each a document, as training packs them
        text = tokenizer.decode(ids)
        assert any(whole.startswith(text) for whole in known)
        assert text.endswith(b"\n")
    if room >= 40:
        assert tokenizer.decode(pieces[-1]) == b"recent_edit = 1\n"
        assert shown.names == ({"/p/pkg/helper.py", "/p/other.py"} if room == 400 else shown.names)
    if room < context.SMALLEST:
        assert shown.ids == ()


def test_what_the_file_has_already_is_left_out(loaded):
    _, tokenizer = loaded
    assert fill(tokenizer, 500, HELPER + b"x = ", "", [HELPER, b"  \n"]).ids == ()


def test_without_anything_to_show_the_prompt_is_the_plain_one(loaded, code):
    _, tokenizer = loaded
    source = (code / "shlex.py").read_bytes()
    for cut in (0, 50, 700, 3000):
        plain = Views(tokenizer).prompt(source[:cut], b"", 60)
        kept = Views(tokenizer).prompt(source[:cut], b"", 60, "a.py")
        assert len(plain.ids) <= 60
        if cut in (0, 50):
            assert plain == kept


def test_only_what_is_typed_is_computed_beside_a_context_that_stays(loaded, library):
    """Keystroke after keystroke, through a file that outgrows its room."""
    suggester = Suggester(*loaded, using="model", library=library)
    begun = b"import helper\nhelper.frobnicate("
    typed = begun + b"widget, times=3)\n\n\n" + b"def again(widget):\n    return main(widget)\n" * 4
    computed = []
    shown = []
    for end in range(len(begun), len(typed)):
        work = suggester.suggest(typed[:end], max_tokens=1, document="/p/pkg/main.py").work
        computed.append(work.prompt_tokens - work.cached_tokens)
        shown.append(suggester.views._kept["/p/pkg/main.py"].view)
    assert len(shown[0].ahead) > context.SMALLEST
    changes = [i for i in range(1, len(shown)) if shown[i] != shown[i - 1]]
    assert 1 <= len(changes) <= len(shown) // 12  # not at every line that leaves the window
    for i, count in enumerate(computed[1:], 1):
        if i not in changes:
            assert count <= 10  # what was healed, and what was typed


def test_the_context_is_chosen_anew_when_a_file_of_it_is_saved(loaded, library):
    _, tokenizer = loaded
    kept = Views(tokenizer, library=library)
    first = kept.prompt(USER, b"", 200, "/p/pkg/main.py")
    assert b"widget.spin" in tokenizer.decode(first.ids)
    kept.update("/p/unrelated.py", b"z = 1\n")
    assert kept.prompt(USER, b"", 200, "/p/pkg/main.py") == first
    kept.update("/p/pkg/helper.py", HELPER.replace(b"spin", b"turn"))
    second = kept.prompt(USER, b"", 200, "/p/pkg/main.py")
    assert b"widget.turn" in tokenizer.decode(second.ids)
    assert b"widget.spin" not in tokenizer.decode(second.ids)


def test_the_context_is_chosen_anew_where_the_cursor_has_moved_far(loaded, library, monkeypatch):
    _, tokenizer = loaded
    monkeypatch.setattr(views, "MOVED", 30)
    kept = Views(tokenizer, library=library)
    kept.prompt(USER, b"", 200, "/p/pkg/main.py")
    first = kept._kept["/p/pkg/main.py"]
    kept.prompt(USER + b"\n" * 20, b"", 200, "/p/pkg/main.py")
    assert kept._kept["/p/pkg/main.py"] is first
    kept.prompt(USER + b"\n" * 40, b"", 200, "/p/pkg/main.py")
    assert kept._kept["/p/pkg/main.py"] is not first
    kept.forget("/p/pkg/main.py")
    assert not kept._kept


def test_texts_from_elsewhere_reach_the_model(loaded):
    """With room for them its answer is that to a prompt that has them, and the n-grams go by the file's own end."""
    model, tokenizer = loaded
    suggester = Suggester(model, tokenizer, using="model")
    source = suggester.source(b"x = frob", b"", "a.py", extra=[b"frobnicate = 3\n"])
    ahead = tokenizer.document(b"frobnicate = 3\n")
    assert source.ids[: len(ahead)] == ahead
    assert tokenizer.decode(source.ids[len(ahead) :]) + source.remainder == b"x = frob"
    assert source.before == source.ids[len(ahead) :]


def test_the_last_edits_elsewhere_are_told_the_newest_first():
    edits = Edits()
    texts = {name: "".join(f"{name} {i}\n" for i in range(50)) for name in "abcdef"}
    for name in "abcdef":
        edits.made(name, texts[name].index(f"{name} 30"))
    edits.made("b", 0)
    edits.forget("e")
    spans = edits.spans({name: texts[name] for name in "abcde"})
    assert [span[:1] for span in spans] == [b"b", b"d", b"c", b"a"]
    assert len(spans) <= MOST
    assert spans[0].decode().splitlines() == [f"b {i}" for i in range(LINES + 1)]
    assert spans[1].decode().splitlines() == [f"d {i}" for i in range(30 - LINES, 31 + LINES)]
    edits.made("c", 10_000)  # its text has become shorter since
    assert edits.spans({"c": "short\n"}) == (b"short\n",)
    assert edits.spans({"c": ""}) == ()
