"""A function from a user's own Python file: called only where running code was allowed.

Whatever that file does wrong comes out as one sentence with the file and line of the user's own code.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ispasp.errors import ISpaSPError
from ispasp.paths import expanded


class UserCodeError(ISpaSPError):
    """A user's Python file may not be run, is missing, or raised; the message names file and line."""


def split(spec: str) -> tuple[Path, str]:
    """``"path/to/file.py:function"`` as the file's absolute path and the function's name.

    Raises:
        UserCodeError: it is not of that form, or the file's path is none.
    """
    file, _, function = spec.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise UserCodeError(
            f"Got {spec!r} as Python code: give a file and a function in it, such as path/to/file.py:function."
        )
    return expanded(file, UserCodeError).absolute(), function


def call(spec: str, *, allow_code: bool) -> object:
    """What the function returns, called without arguments.

    The file's folder can be imported from while its code runs, as if the file itself had been started.

    Args:
        spec: ``"path/to/file.py:function"``.
        allow_code: whether running the file is allowed; nothing of it is read otherwise.

    Raises:
        UserCodeError: it is not allowed, the file cannot be read, it has no such function, the function
            takes arguments, or the code raises.
    """
    if not allow_code:
        raise UserCodeError(
            f"Reading {spec} runs the code in that file, which must be permitted: the command line and Python "
            "do so (allow_code=True), the app only when it is started with ISPASP_ALLOW_CODE=1."
        )
    path, name = split(spec)
    with blamed_on(spec):
        function = getattr(_module(path), name, None)
        if not callable(function):
            raise UserCodeError(f"{path} has no function {name!r}: define it there, or name another.")
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise UserCodeError(
                f"{name} in {path} cannot be called without arguments ({error}): give every argument a default."
            ) from None
        except ValueError:
            pass  # some callables written in C do not tell their arguments
        return function()


@contextmanager
def blamed_on(spec: str) -> Iterator[None]:
    """Turn what the user's code raises inside the ``with`` block into one UserCodeError.

    Also for what runs later, such as a generator that the function returned. Errors of this package
    pass as they are.
    """
    path, _ = split(spec)
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    except ISpaSPError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(_sentence(path, error)) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _module(path: Path) -> ModuleType:
    """The file's module, run anew, so that what was changed in it since counts."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserCodeError(
            f"The Python file {path} cannot be read ({error.strerror or error}): check the path."
        ) from error
    module = ModuleType(f"ispasp_user_code_{path.stem}")
    module.__file__ = str(path)
    # Dataclasses look their module up by name, also long after the file has run.
    sys.modules[module.__name__] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def _sentence(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, said = error.lineno, error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else None
        said = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    where = f"{path}, line {line}," if line else f"{path}"
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{where} raised {reason.rstrip('.')}; mend it there and try again."
