"""A module imports only from the layers above it, and what is heavy is loaded only where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "robustviz"

LAYERS = [
    {"types", "distributed"},
    {"tensors", "records"},
    {"checks", "fingerprint", "neighbors"},
    {"data", "models", "objectives"},
    {"networks"},
    {"attacks"},
    {"defenses"},
    {"presets"},
    {"evaluation", "features"},
    {"certificate", "training"},
    {"checkpoints"},
    {"geometry"},
    {"plots"},
    {"diagnostics", "studies"},
    {"explorers"},
    {"pages", "benchmark"},
    {"lessons"},
    {"widgets", "cli"},
]
DOORS = {"__init__", "__main__"}  # these open the package and may import anything

UPWARD = {"networks/opening.py": "checkpoints"}
"""The one import from below, inside a function: a network is also opened by the name of a checkpoint."""

ALLOWED = {
    "matplotlib": {"plots", "widgets"},
    "umap": {"geometry"},
    "ipywidgets": {"widgets", "explorers"},
    "altair": {"explorers"},
    "vl_convert": {"explorers"},
    "IPython": {"widgets"},
    "accelerate": {"distributed"},
    "foolbox": set(),
    "torchattacks": set(),
}
"""Who may import these at all."""

INSIDE_FUNCTIONS = {"accelerate", "torchvision", "umap"}

FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def part(file):
    """The module or package of the first level that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree):
    """Full names of what is imported anywhere in a piece of code; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree):
    """The code that runs when the module is imported: everything outside functions."""
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in outside:
        if isinstance(node, ast.ClassDef):
            node.body = [inner for inner in node.body if not isinstance(inner, ast.FunctionDef)]
    return ast.Module(outside, [])


def layer(name):
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


@every_file
def test_every_module_has_a_place(file):
    assert part(file) in DOORS or layer(part(file)) is not None, f"add {part(file)} to LAYERS, or do without it"


@every_file
def test_imports_come_from_above(file):
    name = part(file)
    if name in DOORS:
        return
    for imported in imports(ast.parse(file.read_text())):
        root, _, rest = imported.partition(".")
        other = rest.partition(".")[0]
        if root == "robustviz" and other not in ("", name):  # the bare package gives its place on disk
            assert layer(other) is not None, f"{imported} is no module of the library"
            if other != UPWARD.get(str(file.relative_to(PACKAGE))):
                assert layer(other) < layer(name), f"{name} must not import {imported}"


@every_file
def test_heavy_packages_stay_where_they_belong(file):
    tree = ast.parse(file.read_text())
    for imported in imports(tree):
        root = imported.partition(".")[0]
        assert part(file) in ALLOWED.get(root, {part(file)}), f"{root} must not be imported here"
    for imported in imports(at_import_time(tree)):
        assert imported.partition(".")[0] not in INSIDE_FUNCTIONS, f"import {imported} inside the function that uses it"


def test_import_is_light():
    heavy = {"accelerate", "matplotlib", "umap", "ipywidgets", "sklearn", "torchvision", "foolbox"}
    heavy |= {"altair", "vl_convert"}
    code = "import sys, robustviz; print(*{name.partition('.')[0] for name in sys.modules})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(answer.stdout.split())
    assert "robustviz" in loaded
    assert not loaded & heavy


def test_the_walk_finds_what_it_should():
    tree = ast.parse("import a.b\nfrom c.d import e\nclass F:\n    import g\n    def h(self):\n        import i\n")
    assert sorted(imports(tree)) == ["a.b", "c.d.e", "g", "i"]
    assert sorted(imports(at_import_time(tree))) == ["a.b", "c.d.e", "g"]
