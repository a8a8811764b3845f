"""Packs the user's folder and the job's input for a cluster.

We pack ourselves, not Ray: its packing obeys .gitignore for the input file too, which is often
ignored by git just because it is data.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pathspec

from agentcloud.cluster.errors import ConfigError

#: Never needed on a cluster, or never to leave this machine (keys).
ALWAYS_EXCLUDED = (
    ".git/",
    ".hg/",
    ".venv*/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".*_cache/",
    "*.egg-info/",
    ".DS_Store",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    ".ray/",
)
#: Ray's own limit for what its head keeps is 512 MiB; a job's folder should be far below it.
MAX_PACKAGE_BYTES = 256 << 20
#: Where the input lies inside the package.
INPUT_FOLDER = ".agentcloud-input"


def pack(folder: Path, input_file: Path, target: Path) -> Path:
    """Zip a folder and an input.

    Args:
        folder: the user's folder; what its .gitignore and .rayignore name stays out.
        input_file: goes in whatever those say; a dataset's folder with all that is in it.
        target: the zip to write.

    Returns:
        The input's path inside the package.

    Raises:
        ConfigError: a file cannot be read, or the package is too large.
    """
    inside = Path(INPUT_FOLDER) / input_file.name
    total_bytes = 0
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as package:
            for path, name in [*_files(folder), *_input_files(input_file, inside)]:
                size_bytes = path.stat().st_size
                top = name.parts[0]
                sizes[top] = sizes.get(top, 0) + size_bytes
                total_bytes += size_bytes
                if total_bytes > MAX_PACKAGE_BYTES:
                    raise ConfigError(_too_large(sizes), where=str(folder))
                # A fixed date: the same content makes the same package, which Ray then reuses.
                info = zipfile.ZipInfo(name.as_posix(), (1980, 1, 1, 0, 0, 0))
                info.external_attr = (path.stat().st_mode & 0xFFFF) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as source, package.open(info, "w", force_zip64=True) as out:
                    while chunk := source.read(1 << 20):
                        out.write(chunk)
    except OSError as error:
        raise ConfigError(f"cannot pack it ({error})", where=str(folder)) from None
    return inside


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    ignored = pathspec.GitIgnoreSpec.from_lines(_patterns(folder))
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if not ignored.match_file(f"{(here / name).relative_to(folder).as_posix()}/")
        )
        for name in sorted(files):
            relative = (here / name).relative_to(folder)
            if not ignored.match_file(relative.as_posix()) and (here / name).is_file():
                yield here / name, relative


def _input_files(given: Path, inside: Path) -> Iterator[tuple[Path, Path]]:
    if not given.is_dir():
        yield given, inside
        return
    for path in sorted(given.rglob("*")):
        if path.is_file():
            yield path, inside / path.relative_to(given)


def _patterns(folder: Path) -> list[str]:
    patterns: list[str] = []
    for name in (".gitignore", ".rayignore"):
        if (folder / name).is_file():
            patterns += (folder / name).read_text().splitlines()
    return [*patterns, *ALWAYS_EXCLUDED]


def _too_large(sizes: dict[str, int]) -> str:
    largest = sorted(sizes.items(), key=lambda entry: -entry[1])[:3]
    shown = ", ".join(f"{name} ({size >> 20} MiB)" for name, size in largest)
    return (
        f"the folder to send is larger than {MAX_PACKAGE_BYTES >> 20} MiB (so far: {shown}); "
        "name what the job does not need in .rayignore, or give a smaller --working-dir"
    )
