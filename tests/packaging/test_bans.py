"""Patterns banned in .pre-commit-config.yaml, banned for everyone, with the hooks installed or not."""

import pathlib
import re

import pytest
import yaml

CONFIG = yaml.safe_load((pathlib.Path(__file__).parents[2] / ".pre-commit-config.yaml").read_text())
HOOKS = {
    hook["id"]: hook for repo in CONFIG["repos"] for hook in repo["hooks"] if hook["language"] == "pygrep"
}
CAUGHT = {
    "no-pickle": [
        "import pickle",
        "from pickle import loads",
        "state = torch.load(path)",
        "torch.save(state, path)",
        "np.load(path, allow_pickle=True)",
    ],
    "no-print": ["    print(loss)"],
}
ALLOWED = {
    "no-pickle": ["import torch", "safetensors.torch.save_file(tensors, path)", "np.load(path)"],
    "no-print": ["fingerprint(row)"],
}


def offences(hook, files, root):
    wanted, unwanted = re.compile(hook.get("files", "")), re.compile(hook.get("exclude", "^$"))
    names = {path: path.relative_to(root).as_posix() for path in files if path.suffix == ".py"}
    subject = [path for path, name in names.items() if wanted.search(name) and not unwanted.search(name)]
    assert subject
    return [
        f"{names[path]}:{number}: {line.strip()}"
        for path in subject
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(hook["entry"], line)
    ]


@pytest.mark.parametrize("name", HOOKS)
def test_no_tracked_file_breaks_the_ban(name, tracked, root):
    assert offences(HOOKS[name], tracked, root) == []


@pytest.mark.parametrize("name", HOOKS)
def test_the_pattern_catches_what_it_should(name):
    pattern = re.compile(HOOKS[name]["entry"])
    assert [line for line in CAUGHT[name] if not pattern.search(line)] == []
    assert [line for line in ALLOWED[name] if pattern.search(line)] == []
