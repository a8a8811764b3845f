"""Import an object that a user names as `path/to/file.py:name` or `package.module:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from agentcloud.cluster.errors import AgentError, ConfigError

T = TypeVar("T")


def load_object(target: str, kind: type[T], *, what: str, remedy: str) -> T:
    """The named object.

    A file's own folder is put on the import path, as `python file.py` would.

    Args:
        target: `path/to/file.py:name` or `package.module:name`.
        kind: what it must be an instance of.
        what: how errors call that, e.g. `agent`.
        remedy: how to make something one.

    Raises:
        ConfigError: no such file, module or name, or it is of another kind.
        AgentError: the module raises when imported.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ConfigError(
            f"names no {what}; write path/to/file.py:name or package.module:name", where=target
        )
    is_file = place.endswith(".py") or "/" in place
    module = _import_file(Path(place)) if is_file else _import_module(place)
    members = {key for key, value in vars(module).items() if isinstance(value, kind)}
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, members, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif members:
            hint = f"it has: {', '.join(sorted(members))}"
        else:
            hint = f"it has no {what}s; {remedy}"
        raise ConfigError(f"no {what} {name!r}; {hint}", where=place)
    found = getattr(module, name)
    if not isinstance(found, kind):
        raise ConfigError(
            f"{name!r} is no {what} but of type {type(found).__name__}; {remedy}", where=place
        )
    return found


def _import_file(path: Path) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read it ({error.strerror})", where=str(path)) from None
    full = path.resolve()
    # Named by content too: an edited file is another module, an unchanged one is imported once.
    digest = hashlib.sha256(str(full).encode() + b"\0" + source).hexdigest()[:12]
    name = f"agentcloud_user_{full.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(full.parent) not in sys.path:
        sys.path.insert(0, str(full.parent))
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ConfigError("is not a Python file; name one that ends in .py", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(error, str(path), str(full)) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _import_error(error, name, None) from error
        raise ConfigError(
            f"no module {error.name!r}; install it, or name its file: path/to/file.py:name",
            where=name,
        ) from None
    except (Exception, SystemExit) as error:
        raise _import_error(error, name, None) from error


def _import_error(error: BaseException, place: str, file: str | None) -> AgentError:
    """One line: where in the user's file, and what it raised."""
    if isinstance(error, SyntaxError) and error.filename == file:
        line: int | None = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == file), None)
    said = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    first = said.splitlines()[0] if said else ""
    reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return AgentError(f"{place}{f':{line}' if line else ''}: cannot be imported: {reason}")
