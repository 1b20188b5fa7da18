"""The house rules that a reader relies on: imports go one way, public names are documented, no file is endless."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("mlxgpt", "kernels", "configs") for p in (ROOT / folder).rglob("*.py"))

# A room is a folder or a file of mlxgpt. Each may import itself, and of the others only these:
# cli -> training -> completion (its gate is fitted when a run ends) -> generation -> models -> kernels.
ROOMS: dict[str, str] = {
    "errors": "",
    "files": "errors",
    "measure": "",
    "backend": "errors files measure",
    "native": "backend errors",
    "config": "errors",
    "configs": "",
    "tokenizer": "config errors",
    "kernels": "",
    "models": "config errors kernels",
    "kernels_report": "errors kernels measure",
    "hub": "errors files",
    "tensors": "errors files",
    "quantization": "config errors files models",
    "layouts": "config errors files models quantization tensors tokenizer",
    "adapters": "errors files hub layouts models tensors",
    "weights": "adapters config errors files layouts models quantization tensors tokenizer",
    "convert": "adapters config errors files layouts models quantization tensors tokenizer weights",
    "data": "config errors files tokenizer",
    "generation": "config errors files kernels models tensors tokenizer",
    "interrupts": "",
    "ending": "",
    "prompt_bar": "",
    "answer": "adapters backend config errors files generation interrupts models prompt_bar quantization tokenizer "
    "weights",
    "chat": "adapters answer errors files generation interrupts models prompt_bar tokenizer",
    "evaluation": "data kernels models",
    "completion": "adapters backend config data ending errors evaluation files generation hub layouts models "
    "quantization tokenizer weights",
    "training": "adapters backend completion config data errors evaluation files generation kernels layouts measure "
    "models quantization tensors tokenizer weights",
    "server": "answer chat completion errors generation hub layouts tokenizer",
    "lsp": "completion errors",
    "bench": "answer backend completion config data errors generation measure models training",
    "setup": "backend bench completion config errors files models training",
    "cli": "adapters answer backend bench chat completion config convert data ending errors generation hub "
    "kernels_report layouts lsp native quantization server setup training",
    # mlxgpt/__init__.py: the BLAS goes under mlx before anything imports it, and kernels are given their compiler
    "": "backend kernels native",
}
# Only when it is called for: `config` documents every key of a recipe, also those that the models define.
ONLY_WITHIN_FUNCTIONS = {("config", "models")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mlxgpt" else ("mlxgpt", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in SOURCES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> set[str]:
    """The modules that a piece of source imports: a submodule's own name where a package's is imported from."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found


def at_the_top(tree: ast.Module) -> set[str]:
    """Those that are imported with the module, not when a function of it runs nor for a type checker alone."""
    skipped = (ast.FunctionDef, ast.ClassDef, ast.If)
    return imports(ast.Module([node for node in tree.body if not isinstance(node, skipped)], []))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = room(module_name(path))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert here in ROOMS, f"a new room: say in ROOMS what {here} may import"
    top = {room(m) for m in at_the_top(tree) if m.split(".")[0] == "mlxgpt"}
    everywhere = {room(m) for m in imports(tree) if m.split(".")[0] == "mlxgpt"}
    allowed = {here, *ROOMS[here].split()} | ({""} if here == "cli" else set())  # the version
    assert top <= allowed
    assert {(here, there) for there in everywhere - allowed} <= ONLY_WITHIN_FUNCTIONS


def test_the_table_has_no_circle_and_no_room_that_is_gone():
    done: set[str] = set()
    while rest := ROOMS.keys() - done:
        free = {name for name in rest if set(ROOMS[name].split()) <= done}
        assert free, f"a circle among {rest}"
        done |= free
    existing = {room(module) for module in MODULES}
    assert {"training", "completion", "generation", "models", "kernels", "cli"} <= existing


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_need_only_mlx(path):
    """And numpy where they are checked, which they are on a user's machine as well."""
    found = imports(ast.parse(path.read_text(encoding="utf-8")))
    beyond = {m for m in found if not m.startswith("mlxgpt.kernels")}
    allowed = {"mlx", "numpy"} if path.name in ("cases.py", "verify.py") else {"mlx"}
    assert {m.split(".")[0] for m in beyond} - sys.stdlib_module_names <= allowed


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring; a method may have its base class's."""
    missing = []
    documented: dict[str, set[str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            inherited = set().union(*(documented.get(base, set()) for base in bases))
            documented[node.name] = inherited | {m.name for m in methods if ast.get_docstring(m)}
            missing += [f"{node.name}.{m.name}" for m in methods if m.name not in documented[node.name]]
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented_and_files_end(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    assert undocumented(tree) == []
    assert text.count("\n") <= 400


def test_test_files_have_names_of_their_own():
    """Without packages among the tests, pytest imports each by its bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    named = [name for name in names if name != "conftest.py"]  # which pytest finds by its folder
    assert sorted(named) == sorted(set(named))
    assert "__init__.py" not in names
