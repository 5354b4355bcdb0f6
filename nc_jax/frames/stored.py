"""Computed frames on disk: found again by what they were computed from, whoever else reads and writes at the time."""

import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

FOLDER = "NC_JAX_CACHE"  # environment variable that names the folder


def cache_folder() -> Path:
    """Folder of the cache: $NC_JAX_CACHE, else nc_jax in $XDG_CACHE_HOME, else ~/.cache/nc_jax."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nc_jax"


def stored(
    description: str, compute: Callable[[], dict[str, np.ndarray]], folder: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Return arrays from the cache, or compute them and put them there.

    Files are replaced in one step, so several processes may read and write at once; if two compute the same frame, both
    write the same. A file that is damaged, or is of something else, is computed anew. A warning says so, and also if
    the folder cannot be written.

    Args:
        description: everything that the arrays depend on, in one text. The file holds it, and its hash names the file.
        compute: function () -> arrays by name.
        folder: folder of the cache; None for `cache_folder()`.
    """
    path = Path(folder or cache_folder()) / "frames" / f"{hashlib.sha256(description.encode()).hexdigest()[:32]}.npz"
    try:
        # Reading checks the sums that the format keeps of every array.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop("description")) == description:
            return arrays
        reason = "it describes another frame"
    except FileNotFoundError:
        reason = None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason is not None:
        warnings.warn(f"a stored frame must be readable; {path} is computed anew ({reason})", stacklevel=2)
    arrays = compute()
    try:
        _write(path, arrays | {"description": np.array(description)})
    except OSError as error:
        warnings.warn(f"the folder of stored frames must be writable; got {error} (set {FOLDER})", stacklevel=2)
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
