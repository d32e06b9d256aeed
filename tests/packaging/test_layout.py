"""The shape of the repository: what a clone must hold for an install to be complete."""

import importlib
import importlib.util
import pathlib
import pkgutil
import re
import sys
from collections import Counter

import pytest

import varangian

PARTS = ("aggregators", "protos", "server", "worker")
CATALOGUES = (
    "aggregators/rules",
    "worker/attacks",
    "src/varangian/bench/wire/ways",
    "src/varangian/cli/commands",
)
"""Folders of things of one kind, a file for each."""
ADAPTERS = {
    "flower": "flwr",
    "huggingface": "transformers",
    "lightning": "lightning",
    "nvflare": "nvflare",
    "torchft": "torchft",
}
"""Packages for other frameworks, and what they cannot be imported without; .ci/adapters has all."""


@pytest.mark.parametrize("part", PARTS)
def test_the_package_links_to_the_directories_at_the_root(root, part):
    link = root / "src" / "varangian" / part
    assert link.is_symlink(), "a checkout without symlinks (core.symlinks=false): see CONTRIBUTING.md"
    assert str(link.readlink()) == f"../../{part}"
    assert (root / part).is_dir()
    assert not (root / part).is_symlink()


def test_every_directory_with_code_is_a_package(root):
    code = {path.parent for part in (*PARTS, "src/varangian") for path in (root / part).rglob("*.py")}
    assert code
    assert [
        str(folder.relative_to(root)) for folder in code if not (folder / "__init__.py").is_file()
    ] == []


def modules():
    found = pkgutil.walk_packages(varangian.__path__, "varangian.")
    # The compiled kernels are a plain library that ctypes opens, not a module.
    # The kernels in Triton are imported where there is one: tests/aggregators/kernels/gpu/ does.
    apart = ("__main__", "._native", "gpu.tiles")
    absent = (one for one, other in ADAPTERS.items() if importlib.util.find_spec(other) is None)
    lacking = tuple(f"varangian.{adapter}." for adapter in absent)
    names = [module.name for module in found]
    return [name for name in names if not name.endswith(apart) and not name.startswith(lacking)]


def test_each_module_has_one_name():
    """A checkout on sys.path also offers `server.round`: a second copy of everything in it."""
    names = modules()
    for name in names:
        importlib.import_module(name)
    assert {name.split(".")[1] for name in names} >= set(PARTS)
    assert [name for name in sys.modules if name.partition(".")[0] in PARTS] == []


def test_a_folder_has_at_most_a_dozen_modules(tracked, root):
    """`__init__.py` is one of them. More belong into rooms; a catalogue may be as long as it likes."""
    paths = [path.relative_to(root) for path in tracked if path.suffix == ".py"]
    modules = [path for path in paths if path.parts[0] in (*PARTS, "src") and "_pb2" not in path.name]
    counts = Counter(str(path.parent) for path in modules)
    assert counts
    assert {
        folder: count for folder, count in counts.items() if count > 12 and folder not in CATALOGUES
    } == {}


def test_the_version_is_written_once(root, pyproject):
    assert pyproject["project"]["dynamic"] == ["version"]
    newest = re.search(r"^## \[?(\d[\w.]*)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == varangian.__version__


def test_the_architecture_names_the_layers_of_the_contract(root, pyproject):
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "Arrows point down")
    page = (root / "ARCHITECTURE.md").read_text()
    places = [page.find(f"`{module.strip()}`") for layer in layers for module in layer.split("|")]
    assert -1 not in places
    assert places == sorted(places)


MACHINE = re.compile(
    "(^|[^A-Za-z0-9_.])/(" + "|".join(["wo" + "rk", "fa" + "rm", "ro" + "ot"]) + ")/", re.MULTILINE
)
HOSTS = re.compile(
    "|".join(["python" + "hosted", r"pypi\." + "org", r"pytorch\." + "org", "npm" + r"js\."])
)


@pytest.mark.parametrize("pattern", [MACHINE, HOSTS], ids=["paths of a machine", "hosts of a registry"])
def test_tracked_files_name_no(tracked, pattern):
    texts = {path: path.read_bytes().decode(errors="ignore") for path in tracked}
    assert [str(path) for path, text in texts.items() if pattern.search(text)] == []


def test_those_patterns_find_something():
    assert MACHINE.search("see /" + "root/x")
    assert HOSTS.search("https://" + "pypi" + ".org/simple")
    assert not MACHINE.search(str(pathlib.PurePosixPath("here/root") / "x"))
