"""States as a checkpoint gives them back."""

from pathlib import Path
from typing import Any

from varangian.state_file import Tree, flatten, read, unflatten, write


def kept(state: Tree, folder: Path) -> Any:
    """The state after it was written to a file and read again."""
    plain, tensors = flatten(state)
    file = folder / "state.safetensors"
    write(file, {"state": plain}, tensors)
    found = read(file)
    file.unlink()
    return unflatten(found.plain["state"], found.tensors)
