"""Every tensor that is made says its type: a program may have set another default than float32."""

import ast
import re

MAKERS = {"empty", "zeros", "ones", "rand", "randn", "linspace", "eye", "scalar_tensor"}
"""Functions of torch whose type is the default one unless it is said."""
CALL = re.compile(rf"torch\.({'|'.join(MAKERS)})\(")
PARTS = ("aggregators/", "protos/", "server/", "worker/", "src/varangian/")


def without_type(source):
    """Lines with a tensor that has the default type."""
    if not CALL.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        module, said = node.func.value, {word.arg for word in node.keywords}
        makes = isinstance(module, ast.Name) and module.id == "torch" and node.func.attr in MAKERS
        if makes and said.isdisjoint({"dtype", "out", None}):
            yield node.lineno


def test_the_type_of_every_new_tensor_is_said(tracked, root):
    names = {path.relative_to(root).as_posix(): path for path in tracked if path.suffix == ".py"}
    code = {name: path for name, path in names.items() if name.startswith(PARTS)}
    assert len(code) > 100
    assert [
        f"{name}:{line}" for name, path in code.items() for line in without_type(path.read_text())
    ] == []


def test_it_sees_what_it_should():
    assert [*without_type("a = torch.empty(3)\nb = torch.randn(\n    3, generator=g)")] == [1, 2]
    assert [
        *without_type("torch.empty(3, dtype=torch.uint8); torch.empty_like(a); torch.zeros(3, out=a)")
    ] == []
