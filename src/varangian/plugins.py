"""The boundary around users' code: whatever it raises becomes one sentence.

Functions are named as `module:function`. They are only ever resolved from the configuration of this
machine, never from anything a peer has sent.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from varangian.registry import suggestion

LONGEST = 300
"""Characters of somebody else's message that are repeated."""
MANY = 8
"""Names of functions that are listed where one is not found."""
NOT_THE_USERS = {"varangian", "torch", "numpy", "safetensors", *sys.stdlib_module_names} - {"__main__"}
"""Packages in which the line that failed is of no help."""


class InputError(ValueError):
    """Something of the user's that cannot be used; the text is a sentence for the user."""


class UserCodeError(InputError):
    """Code of the user's that failed; the text names it, the cause and what to do."""


@contextmanager
def guard(
    what: str, advice: str = "", target: str = "", error: type[InputError] = UserCodeError
) -> Generator[None]:
    """Run code of the user's: any exception becomes `error`, and `sys.exit` does not end the process.

    Ctrl-C passes, and so does an `InputError`, which says already what is wrong.

    Args:
        what: what failed, to begin the sentence with.
        advice: what to do, as a sentence.
        target: the `module:function` in question, if any.
        error: what to raise.
    """
    try:
        yield
    except InputError as found:
        if target in str(found):
            raise
        raise type(found)(f"{what} failed: {found}") from found
    except KeyboardInterrupt:
        raise
    except BaseException as found:  # libraries in other languages panic with some that are no Exception
        raise error(f"{what} failed: {cause(found, target)}. {advice}".rstrip()) from found


def cause(error: BaseException, target: str = "") -> str:
    """`KeyError: 'depth' (mine.py, line 6)`: the type, the message, and the user's line."""
    try:
        text = " ".join(str(error).split()).rstrip(".")
    except Exception:
        text = ""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    if isinstance(error, SyntaxError):
        text = error.msg
    kind = type(error).__name__
    said = f"it called sys.exit({text})" if isinstance(error, SystemExit) else f"{kind}: {text}"
    return f"{said.removesuffix(': ')}{place(error, target)}"


def place(error: BaseException, target: str = "") -> str:
    """The file and line of the user's where an exception came from, in brackets; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({short(error.filename)}, line {error.lineno})"
    frames = list[tuple[FrameType, int]]()
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    own = target.partition(":")[0].partition(".")[0]
    for wanted in ((lambda name: name == own), (lambda name: name not in NOT_THE_USERS)):
        for frame, line in reversed(frames):
            if wanted(str(frame.f_globals.get("__name__", "")).partition(".")[0]):
                return f" ({short(frame.f_code.co_filename)}, line {line})"
    return ""


def short(file: str) -> str:
    """The path of a file, from the current folder where it lies below that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def named(part: object, name: str) -> str:
    """`module:function` of what the user brings; otherwise the name of what is built in."""
    return str(getattr(part, "target", name))


def resolve(target: str, error: type[InputError] = UserCodeError) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules in the current folder are found too.

    Raises:
        InputError: with what is wrong about it.
    """
    module_name, colon, function_name = target.partition(":")
    if not (colon and module_name and function_name):
        raise error(f"`target` should look like `package.module:function`. Found {target!r}.")
    if module_name.endswith(".py"):
        meant = f"{module_name.removesuffix('.py').replace('/', '.')}:{function_name}"
        raise error(f"`target` should name a module, not its file. Found {target!r}. Write {meant!r}.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file here never hides a library
    advice = f"Check that `import {module_name}` works in Python, in this folder."
    with guard(f"`target` {target!r} cannot be imported: it", advice, target, error):
        found: Any = importlib.import_module(module_name)
    module = found
    for part in function_name.split("."):
        if not hasattr(found, part):
            known = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
            hint = suggestion(part, known[:MANY])
            said = f"`target` {target!r} cannot be imported: {module_name} has no {part!r}"
            raise error(f"{said}{hidden(module)}. {hint}".rstrip())
        found = getattr(found, part)
    if not callable(found):
        raise error(f"`target` {target!r} should be a function. Found {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def hidden(module: Any) -> str:
    """Where a module was found, if a file of its name in the current folder was not taken."""
    name, file = str(module.__name__), getattr(module, "__file__", None)
    here = Path.cwd() / f"{name.replace('.', '/')}.py"
    if here.exists() and (file is None or not here.samefile(file)):
        return f" (it is {file or 'part of Python'}; {here.name} in this folder needs another name)"
    return ""


def call(
    setting: str,
    target: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    error: type[InputError] = UserCodeError,
) -> Any:
    """What a function of the user's returns.

    Args:
        setting: where it was named, for messages.
        target: `module:function`.
        arguments: what it is given in order, with the names that messages use.
        options: what the user gave, by name.
        error: what to raise.

    Raises:
        InputError: it cannot be imported, does not take these arguments, or fails.
    """
    function = resolve(target, error)
    here = f"`{setting}` {target!r}"
    if setting in ("loss", "metrics") and inspect.isclass(function):
        raise error(
            f"{here} should be a function. Found a class. Name an instance of it, as `loss = Loss()`."
        )
    try:
        inspect.signature(function).bind(*arguments.values(), **options)
    except TypeError as found:
        takes = ", ".join([*arguments, *(f"{name}=" for name in options)])
        raise error(f"{here} is called with ({takes}), which it does not take: {found}.") from found
    except ValueError:
        pass  # a function without a signature, as some of those written in C
    with guard(here, f"Mend it, or name another function in `{setting}`.", target, error):
        return function(*arguments.values(), **options)
