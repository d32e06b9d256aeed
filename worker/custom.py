"""Parts that the user brings, named as `module:function`.

Only ever resolved from the configuration of this machine, never from anything a peer has sent.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def resolve(target: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules in the current folder are found too.

    Raises:
        ValueError: with what is wrong about it.
    """
    module_name, colon, function_name = target.partition(":")
    if not (colon and module_name and function_name):
        raise ValueError(f"`target` should look like `package.module:function`. Found {target!r}.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file here never hides a library
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`target` {target!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise ValueError(f"`target` {target!r} should be a function. Found {type(function).__name__}.")
    return function  # type: ignore[no-any-return]
