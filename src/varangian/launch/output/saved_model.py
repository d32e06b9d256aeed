"""The saved model of a run: the whole state of the module as safetensors, and back to a module."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from varangian.config import load as load_config
from varangian.files import user_path
from varangian.launch.model_side import ModelSide
from varangian.launch.result import RunError

PARAMETERS = "parameters.safetensors"
AVERAGE = "ema.safetensors"
RECIPE = ("features", "outputs")
"""Metadata with which a model is built again; a module of a program has none."""


def pack_state(model_side: ModelSide, parameters: Tensor) -> bytes:
    """The state of the model with these parameters: what trains, what is frozen, buffers, and every name.

    The metadata say how to build the model again, and which entries, in their order, make the flat vector
    that the digest is of.
    """
    trained = [*model_side.state_names]
    flat = parameters.detach().to("cpu", torch.float32).contiguous()
    known = {
        "digest": hashlib.blake2b(flat.numpy().data, digest_size=16).hexdigest(),
        "trained": json.dumps(trained),
        **model_side.recipe,
    }
    with model_side.model_state(parameters) as state:
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        # What is not a tensor (`get_extra_state`) has no place in the format.
        known["left_out"] = json.dumps(sorted(state.keys() - tensors.keys()))
        try:
            return save(_separate(tensors), known)
        except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError):
            # A type that the format lacks, in a buffer perhaps: what was learned is saved all the same.
            there = [name for name in trained if name in tensors]
            known["left_out"] = json.dumps(sorted(state.keys() - {*there}))
            return save(_separate({name: tensors[name] for name in there}), known)


def load(run: str | os.PathLike[str], *, ema: bool = False, state: bool = False) -> Any:
    """The model of a run: built as its configuration says, with the saved state, in evaluation mode.

    Of a run whose server was started from Python (`varangian.Server`) it is the state, name to tensor, for
    `load_state_dict` of the same module: nothing else can build that.

    Args:
        run: the folder of the run.
        ema: the average of the model, in place of the model.
        state: return the plain state, name to tensor, for `load_state_dict` of a module of your own.

    Raises:
        RunError: there is no such file, or it does not fit the model.
    """
    folder = user_path(run)
    path = folder / (AVERAGE if ema else PARAMETERS)
    with _open(path) as (tensors, known):
        if state or not {*RECIPE} <= known.keys():
            return tensors
        return _rebuild(folder, tensors, known)


def load_parameters(run: str | os.PathLike[str]) -> Tensor:
    """The final parameters of a run, (d,): those that its digest is of.

    Raises:
        RunError: there is no such file, or it holds none.
    """
    path = user_path(run) / PARAMETERS
    with _open(path) as (tensors, known):
        try:
            return torch.cat([tensors[name].flatten() for name in json.loads(known["trained"])])
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{path} should name its trained parameters. Reading it says: {error}"
            ) from error


@contextmanager
def _open(path: Path) -> Generator[tuple[dict[str, Tensor], Mapping[str, str]]]:
    if not path.is_file():
        hint = "Only a run with `ema` has an average. " if path.name == AVERAGE else ""
        found = "It has not ended yet, perhaps." if path.parent.is_dir() else "There is no such folder."
        raise RunError(f"{path.parent} should be the folder of a run with {path.name}. {hint}{found}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = file.metadata() or {}
    except SafetensorError as error:
        raise RunError(f"{path} should be a file of safetensors. Reading it says: {error}") from error
    yield tensors, known


def _rebuild(folder: Path, tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> nn.Module:
    config = load_config(folder / "config.yaml", whole=False)
    try:
        features, outputs = _tuples(json.loads(known["features"])), json.loads(known["outputs"])
        module = config.model.build(features, outputs)
        # What could not be saved is as the model makes it.
        module.load_state_dict(tensors, strict=not json.loads(known["left_out"]))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a RecursionError is a RuntimeError
        raise RunError(f"the model of {folder} does not take what was saved: {error}") from error
    return module.eval()


def _tuples(value: Any) -> Any:
    """Shapes as a model takes them: JSON has lists in the place of tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own: tied ones are written once for each name."""
    seen = set[int]()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        dense = tensor.contiguous()
        apart[name] = dense.clone() if memory in seen and dense is tensor and tensor.numel() else dense
        seen.add(memory)
    return apart
