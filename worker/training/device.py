"""The device of torch to compute on, checked on this machine."""

from __future__ import annotations

import torch

from varangian.plugins import InputError, describe_error


def find_device(name: str) -> torch.device:
    """A device that can compute here.

    Raises:
        InputError: when there is none of this name.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"`worker.device` should be one that torch knows, as cpu or cuda:0. Found {name!r}."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"`worker.device` should be one of this machine. Found {name!r}, and torch sees no GPU."
        )
    try:
        works = float(torch.ones(1).to(device).add(1).cpu()) == 2
    except Exception as error:
        raise InputError(
            f"`worker.device` should be one of this machine. Found {name!r}, which does not work: "
            f"{describe_error(error)}. Set worker.device=cpu."
        ) from error
    if not works:
        raise InputError(f"`worker.device` should compute. Found {name!r}. Set worker.device=cpu.")
    return device
