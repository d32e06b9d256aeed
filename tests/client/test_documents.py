"""The loop of the README and of its page, as it is written there, and the two programs side by side."""

import difflib
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest
import torch
from tests.client.rig import model, serving
from tests.extent import patience

import varangian
from varangian.server.identity.tls import Security

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/side-by-side"


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/own-loop.md"])
def test_the_loop_of_a_page(page, bundles, monkeypatch):
    (loop,) = re.findall(
        r"test_documents.py runs it with a server -->\n```python\nimport varangian\n\n(.*?)```",
        (ROOT / page).read_text(),
        re.DOTALL,
    )
    assert len([line for line in loop.splitlines() if line.strip()]) <= 6
    module, asked = model(), []
    with serving(module, security=Security(bundles / "ours" / "server"), rounds=2) as rig:

        def connect(server, *given, **more):
            asked.append(server)
            return varangian.connect(rig.address, *given, **more)

        names = {
            "varangian": types.SimpleNamespace(connect=connect),
            "model": module,
            "loader": [torch.rand(4, 3) for _ in range(5)],
            "loss_of": lambda module, batch: module(batch).square().mean(),
        }
        monkeypatch.chdir(bundles / "ours")
        exec(compile(loop, page, "exec"), names)
    assert asked == ["server:50051"]
    assert names["worker"].reason == "all 2 rounds are done"
    assert names["outcome"] == varangian.Outcome(True, 1, weight=1.0, weight_round=0)


def lines(name):
    _, *rest = (EXAMPLE / name).read_text().splitlines()  # the first is a sentence about the file
    return [line for line in rest if line]


def test_few_lines_differ_between_a_loop_and_the_same_with_a_server():
    blocks = difflib.SequenceMatcher(None, lines("plain.py"), lines("distributed.py"), False).get_opcodes()
    differ = sum(max(b - a, d - c) for tag, a, b, c, d in blocks if tag != "equal")
    assert differ == 5
    said = re.search(r"(\w+) lines differ", (ROOT / "docs/how-to/own-loop.md").read_text())
    assert said[1] == "five"


@pytest.mark.slow
@pytest.mark.exhaustive  # the loops of both are run above, with a server of their own
def test_the_programs_side_by_side(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "VARANGIAN_SECRET": "a secret of this test"}

    def program(*words, **more):
        return subprocess.Popen(
            [sys.executable, *words], cwd=EXAMPLE, env=env | more, stdout=subprocess.PIPE, text=True
        )

    settings = ["rounds=60", "evaluate.every=60", f"output={tmp_path}", "server.port=0", "workers=2", "f=0"]
    server = program(
        "-m", "varangian", "server", "run.yaml", *settings, "aggregator=mean", "--format=plain"
    )
    loops = []
    try:
        found = (re.search(r"serving at (\S+),", line) for line in server.stdout)
        address = next(match[1] for match in found if match)
        for name in ("w00", "w01"):
            token = subprocess.check_output(
                [sys.executable, "-m", "varangian", "token", name], env=env, text=True
            )
            loops.append(
                program("distributed.py", SERVER=address, VARANGIAN_TOKEN=token.strip(), SEED=name[1:])
            )
        plain = program("plain.py")
        found = [one.communicate(timeout=patience(120))[0] for one in (*loops, plain)]
        assert [one.returncode for one in (*loops, plain)] == [0, 0, 0]
        accuracy = [float(re.search(r"accuracy (\S+)", text)[1]) for text in found]
        assert accuracy[0] == accuracy[1] > 0.5
        assert accuracy[2] > 0.9
        server.communicate(timeout=patience(60))
        assert server.returncode == 0
    finally:
        for one in (server, *loops):
            one.kill()
            one.communicate()
