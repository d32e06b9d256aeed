"""Dependencies from elsewhere are pinned: packages by hash, actions by commit."""

import importlib.metadata
import re

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("requirements.lock", "requirements-cpu.lock")


def entries(path):
    """The requirements of a lock file with their hashes."""
    joined = re.sub(r" \\\n\s+", " ", path.read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    parts = [re.split(r" (?=--hash=)", line) for line in lines]
    return {
        canonicalize_name(Requirement(first).name): (Requirement(first), rest) for first, *rest in parts
    }


@pytest.fixture(params=LOCKS)
def locked(request, root):
    return entries(root / request.param)


def test_every_entry_has_one_version_and_hashes(locked):
    assert len(locked) > 30
    for requirement, hashes in locked.values():
        assert re.fullmatch(r"==[\w.+]+", str(requirement.specifier))
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)


def test_the_lock_is_within_pyproject_and_constraints(locked, root, pyproject):
    project = pyproject["project"]
    wanted = [
        *pyproject["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["certs"],
    ]
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {name: str(found.specifier).removeprefix("==") for name, (found, _) in locked.items()}
    asked = [Requirement(text) for text in wanted]
    assert [str(one) for one in asked if not one.specifier.contains(versions[one.name])] == []
    different = {
        name for name, version in versions.items() if pins.get(name, version) != version.split("+")[0]
    }
    assert different == set(), "run `make lock`"


def test_the_lock_of_the_cpu_build_holds_all_that_is_installed_with_it(root):
    """pip refuses to install what the lock lacks; so this would be found while an image is built."""
    locked = entries(root / LOCKS[1])
    seen, todo = set(), ["torch", *(name for name in locked)]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        version = str(locked[name][0].specifier).removeprefix("==") if name in locked else ""
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # cryptography is an extra
        if installed.version.partition("+")[0] != version.partition("+")[0]:
            continue  # another release may need other packages
        found = [Requirement(text) for text in installed.requires or []]
        todo += [one.name for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    gpu = {name for name in seen if re.match(r"(nvidia|cuda|triton)\b", name)}
    assert seen - gpu <= locked.keys()


def test_the_two_locks_differ_in_torch_alone(root):
    usual, cpu = (entries(root / name) for name in LOCKS)
    assert str(cpu["torch"][0].specifier) == f"{usual['torch'][0].specifier}+cpu"
    assert not set(cpu["torch"][1]) & set(usual["torch"][1])
    only = {name for name in usual if name not in cpu}
    assert "triton" in only
    assert all(re.match(r"(nvidia|cuda|triton)\b", name) for name in only)
    assert {name: cpu[name] for name in cpu if name != "torch"} == {
        name: usual[name] for name in cpu if name != "torch"
    }


def test_the_cpu_build_is_locked_for_every_python_and_processor(root, pyproject):
    lines = [line.split() for line in (root / ".ci/torch-cpu.sha256").read_text().splitlines()]
    requirement, hashes = entries(root / LOCKS[1])["torch"]
    assert sorted(hashes) == sorted(f"--hash=sha256:{digest}" for digest, _ in lines)
    version = str(requirement.specifier).removeprefix("==")
    pythons = re.findall(r"Python :: (3)\.(\d+)", str(pyproject["project"]["classifiers"]))
    assert len(pythons) >= 4
    assert {wheel for _, wheel in lines} == {
        f"torch-{version}-cp3{minor}-cp3{minor}-manylinux_2_28_{machine}.whl"
        for _, minor in pythons
        for machine in ("aarch64", "x86_64")
    }


def test_no_lock_names_an_index(root):
    for name in LOCKS:
        lines = (root / name).read_text().splitlines()
        assert [line for line in lines if re.match(r"\s*(-|https?:)(?!-hash=)", line)] == []


def test_actions_are_pinned_by_commit_and_say_their_version(root):
    text = (root / ".github/workflows/ci.yml").read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", one)] == []


def test_what_is_pinned_is_renewed(root):
    updates = yaml.safe_load((root / ".github/dependabot.yml").read_text())["updates"]
    places = {(update["package-ecosystem"], update["directory"]) for update in updates}
    assert places == {("github-actions", "/"), ("docker", "/.ci/base"), ("pip", "/")}
