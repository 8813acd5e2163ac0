"""Who may import whom, read from the source: arrows point downwards, nothing imports a script, files stay readable."""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 450
# Each room with those that it may import besides itself; what stands below those comes with them.
DIRECTLY_BELOW = {
    "modeling_collap": (),
    "processing": (),  # its __init__ alone registers with the model's configuration, see EXCEPTIONS
    "collap.files": ("modeling_collap", "processing"),
    "collap.models": ("collap.files",),
    "collap.data": ("collap.models",),
    "collap.card_text": ("collap.data",),
    "collap.clap": ("collap.models",),
    "collap.corpora": ("collap.card_text", "collap.clap"),
    "collap.evaluation": (
        "collap.corpora",
    ),  # rendered songs are described and rendered anew for the benchmark of time
    "collap.training": ("collap.evaluation", "collap.corpora"),
    "collap.search": ("collap.evaluation", "collap.corpora"),
    "collap.hub": ("collap.evaluation", "collap.corpora"),
    "collap.cli": ("collap.files",),  # what a command needs is imported when it runs
    "collap.__main__": ("collap.cli",),
    "collap": (),
    "evaluate_retrieval": ("collap.cli",),
    "train": ("collap.training", "collap.search", "collap.hub", "collap"),
    "app": ("collap.cli",),
    "demo": ("train", "evaluate_retrieval"),
    "benchmarks": ("demo",),
}
EXCEPTIONS = {("processing", "modeling_collap")}  # (module, room)
PACKAGES = ("modeling_collap", "processing", "collap")
SCRIPTS = {"train", "evaluate_retrieval", "app"}


def allowed(room: str) -> set[str]:
    """The room and every one below it."""
    return {room}.union(*map(allowed, DIRECTLY_BELOW[room]))


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    files = chain(*((ROOT / folder).rglob("*.py") for folder in (*PACKAGES, "demo", "benchmarks")), ROOT.glob("*.py"))
    found = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "spaces" not in parts and parts != ("setup",):  # a Space is code of its own, on another machine
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(name: str) -> str | None:
    """The room that a module, or a name in it, belongs to; None for other people's packages."""
    parts = name.split(".")
    return next((room for i in range(len(parts), 0, -1) if (room := ".".join(parts[:i])) in DIRECTLY_BELOW), None)


def imports_of(module: str, source: str, is_package: bool = False) -> set[str]:
    """Dotted names that a module imports, at its top or in a function."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            place = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{place}.{alias.name}" for alias in node.names}
    return found


def arrows_up(module: str, source: str, is_package: bool = False) -> set[str]:
    """What a module imports from a room that does not stand below its own."""
    below = allowed(room_of(module))
    found = {name: room_of(name) for name in imports_of(module, source, is_package)}
    return {name for name, room in found.items() if room and room not in below and (module, room) not in EXCEPTIONS}


def source_of(module: str) -> tuple[str, str, bool]:
    path = MODULES[module]
    return module, path.read_text(encoding="utf-8"), path.name == "__init__.py"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_arrow_points_downwards(module):
    assert room_of(module), f"{module} stands in no room"
    assert not arrows_up(*source_of(module))


def test_no_package_imports_a_script_and_training_and_hub_do_not_know_each_other():
    for room in DIRECTLY_BELOW:
        if room.split(".")[0] in PACKAGES:
            assert not allowed(room) & (SCRIPTS | {"demo", "benchmarks"})
    assert "collap.hub" not in allowed("collap.training") and "collap.training" not in allowed("collap.hub")
    assert "collap.training" not in allowed("collap.search")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("modeling_collap.scoring_collap", "import processing"),
        ("processing.audio_collap", "from modeling_collap import CoLLAPConfig"),
        ("collap.files", "from .models import load_model"),
        ("collap.models", "def late():\n    from collap.data.rows import row_texts"),
        ("collap.data.rows", "from ..evaluation import metrics"),
        ("collap.evaluation.metrics", "from collap.hub.cards import model_card"),
        ("collap.corpora.synthetic.songs", "from collap.evaluation import report"),
        ("collap.training.step", "from collap.hub import publish"),
        ("collap.hub.publish", "from collap.training.step import *"),
        ("collap.hub.publish", "import train"),
        ("collap.cli", "import collap.models"),
        ("collap.training.validation", "from evaluate_retrieval import main"),
        ("train", "from benchmarks.encode import main"),
    ],
)
def test_an_import_turned_upward_is_found(module, line):
    name, source, is_package = source_of(module)
    assert not arrows_up(name, source, is_package)
    assert arrows_up(name, f"{source}\n{line}\n", is_package)


def test_no_module_imports_itself_by_way_of_others():
    def targets(module: str) -> set[str]:
        """The modules that are imported: `a.b.c` is of the module `a.b` unless `a.b.c` is one itself."""
        names = imports_of(*source_of(module))
        return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys() - {module}

    graph, done = {module: targets(module) for module in MODULES}, set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_longer_than_one_can_read(module):
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{MODULES[module]}: {lines} lines"


def test_files_that_travel_have_names_of_their_own():
    names = [path.name for folder in PACKAGES[:2] for path in (ROOT / folder).rglob("*.py") if path.stem != "__init__"]
    assert len(set(names)) == len(names) > 10
    assert not [
        path for folder in PACKAGES[:2] for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()
    ]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name) in PACKAGES[:2] and "." in name))
def test_files_that_travel_import_only_files_beside_them(module):
    assert not badly_imported(MODULES[module].read_text(encoding="utf-8"))


def badly_imported(source: str) -> list[int]:
    """Lines of relative imports that transformers does not follow: it knows `from .name import ...` at line start."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]
    return [
        node.lineno for node in nodes if node.level > 1 or not node.module or "." in node.module or node.col_offset > 0
    ]


@pytest.mark.parametrize(
    "line", ["from . import x", "from ..a import x", "from .a.b import x", "if 1:\n from .a import x"]
)
def test_a_bad_relative_import_is_found(line):
    assert badly_imported(line) and not badly_imported("from .a import x, y")


def test_the_files_that_the_architecture_names_are_there():
    named = set()
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        found = re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.(?:py|md|sh|yaml|txt)|/))`", line)
        for name in found:  # a row that begins with a folder, or a file in one, names files in it
            places = ("", f"{found[0].rpartition('/')[0]}/")
            path = next((f"{place}{name}" for place in places if (ROOT / f"{place}{name}").exists()), None)
            assert path, f"docs/architecture.md: no {name}"
            named.add(path)
    assert len(named) > 60
    for room in DIRECTLY_BELOW:
        path = room.replace(".", "/")
        exists = [name for name in (f"{path}/", f"{path}.py") if (ROOT / name).exists()]
        assert not exists or exists[0] in named, f"docs/architecture.md says nothing of {exists[0]}"
