"""User functions by name: importing and calling them, and sentences about their errors.

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
"""Most characters of another library's message that are repeated."""
MANY = 8
"""Most names of functions that are listed where one is not found."""
NOT_THE_USERS = {"varangian", "torch", "numpy", "safetensors", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose lines are not reported as the place of an error."""


class InputError(ValueError):
    """Code or data of the user that cannot be used; the text is a sentence for the user."""


class UserCodeError(InputError):
    """Code of the user that failed; the text names it, the cause and what to do."""


@contextmanager
def guard(
    what: str, advice: str = "", target: str = "", error: type[InputError] = UserCodeError
) -> Generator[None]:
    """Run code of the user: any exception becomes `error`, and `sys.exit` does not end the process.

    KeyboardInterrupt passes, and so does an `InputError`, whose sentence is for the user already.

    Args:
        what: the beginning of the sentence, before `failed`.
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
        raise error(f"{what} failed: {describe_error(found, target)}. {advice}".rstrip()) from found


def describe_error(error: BaseException, target: str = "") -> str:
    """`KeyError: 'depth' (mine.py, line 6)`: type, message, and the line in the user's code."""
    try:
        text = " ".join(str(error).split()).rstrip(".")
    except Exception:
        text = ""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    if isinstance(error, SyntaxError):
        text = error.msg
    if not text.isprintable():  # what could steer a terminal
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    kind = type(error).__name__
    said = f"it called sys.exit({text})" if isinstance(error, SystemExit) else f"{kind}: {text}"
    return f"{said.removesuffix(': ')}{user_line(error, target)}"


def user_line(error: BaseException, target: str = "") -> str:
    """The line in the user's code that raised an exception, ` (file, line 6)`; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({relative_path(error.filename)}, line {error.lineno})"
    frames = list[tuple[FrameType, int]]()
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    own = target.partition(":")[0].partition(".")[0]
    for wanted in ((lambda name: name == own), (lambda name: name not in NOT_THE_USERS)):
        for frame, line in reversed(frames):
            if wanted(str(frame.f_globals.get("__name__", "")).partition(".")[0]):
                return f" ({relative_path(frame.f_code.co_filename)}, line {line})"
    return ""


def relative_path(file: str) -> str:
    """The path of a file, relative to the current folder if it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def target_name(part: object, name: str) -> str:
    """`module:function` of a part that the user brings, otherwise the given name."""
    return str(getattr(part, "target", name))


def resolve(
    target: str, error: type[InputError] = UserCodeError, what: str = "`target`"
) -> Callable[..., Any]:
    """Import the function or class `package.module:name`; modules in the current folder are found too.

    Args:
        target: to import.
        error: what to raise.
        what: the setting that has the name, for messages.

    Raises:
        InputError: it is not of this form, cannot be imported, or is not a function.
    """
    module_name, colon, function_name = target.partition(":")
    if not (colon and module_name and function_name):
        raise error(f"{what} should look like `package.module:function`. Found {target!r}.".lstrip())
    if module_name.endswith(".py"):
        meant = f"{module_name.removesuffix('.py').replace('/', '.')}:{function_name}"
        said = f"{what} should name a module, not its file. Found {target!r}. Write {meant!r}."
        raise error(said.lstrip())
    named = f"{what} {target!r}".lstrip()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file here never hides a library
    advice = f"Check that `import {module_name}` works in Python, in this folder."
    with guard(f"{named} cannot be imported: it", advice, target, error):
        found: Any = importlib.import_module(module_name)
    module = found
    for part in function_name.split("."):
        if not hasattr(found, part):
            known = [
                name
                for name, value in vars(module).items()
                if callable(value)
                and name[0] != "_"
                and getattr(value, "__module__", "") == module.__name__
            ]
            hint = suggestion(part, known[:MANY])
            said = f"{named} cannot be imported: {module_name} has no {part!r}"
            raise error(f"{said}{shadowing_file(module)}. {hint}".rstrip())
        found = getattr(found, part)
    if not callable(found):
        raise error(f"{named} should be a function. Found {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def shadowing_file(module: Any) -> str:
    """The place of a module that hides a file of the same name in the current folder."""
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
    """Call a function of the user and return its result.

    Args:
        setting: that names it, for messages.
        target: `module:function`.
        arguments: positional arguments, with their names in messages.
        options: keyword arguments from the configuration.
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
