"""Arrays in files, read piece by piece: NumPy's, safetensors, state dictionaries of PyTorch, and folders of shards.

Nothing is unpickled. Pieces are read into memory of their own, not mapped, so a file of any size takes the memory of
one piece. (Files of PyTorch are mapped by PyTorch.)
"""

import contextlib
import dataclasses
import io
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nc_jax.checks import as_array

TORCH = (".pt", ".pth", ".bin", ".ckpt")  # names that state dictionaries have, those of Hugging Face and Lightning too
SUFFIXES = (".npy", ".npz", ".safetensors", *TORCH)
# Names of dtypes in safetensors, https://huggingface.co/docs/safetensors
_SAFETENSORS: Mapping[str, Any] = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BF16": jnp.bfloat16,
    "BOOL": bool,
}
_HEADER_BYTES = 100_000_000  # the longest header that the format allows


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in files.

    Attributes:
        name: how to name it on a command line, such as "head.pt:fc.weight".
        shape: its shape.
        dtype: its dtype.
        pieces: number of rows -> its rows, so many at once, fewer at the end.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[int], Iterator[np.ndarray]]

    def read(self) -> np.ndarray:
        """Return the whole array."""
        if not self.shape:
            raise ValueError(f"{self.name} must be an array; got a single number")
        return next(self.pieces(max(self.shape[0], 1)), np.empty(self.shape, self.dtype))

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


def find_array(words: str) -> Stored:
    """Return the array that a word of a command line names: FILE, FILE:NAME, FOLDER or FOLDER:NAME.

    Args:
        words: path of a file or folder, and the name of an array in it. Without a name it must hold one array only.

    Raises:
        ValueError: if there is no such array, or several to choose from.
    """
    path, name = split_name(words)
    arrays = arrays_at(path)
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name not in arrays:
        wanted = "hold one array, or be followed by a colon and its name" if name is None else f"hold an array {name!r}"
        raise ValueError(f"{path} must {wanted}; got {listed(arrays.values())}")
    return arrays[name]


def arrays_at(path: Path) -> dict[str, Stored]:
    """Return the arrays of a file or a folder by name. In a folder, arrays of one name are shards.

    The rows of shards follow each other in the order of the names of their files.

    Raises:
        ValueError: as `arrays_in`; if the folder has no file of arrays, or shards do not fit.
    """
    if path.is_file():
        return arrays_in(path)
    files = sorted((file for file in path.iterdir() if file.suffix in SUFFIXES), key=lambda file: natural(file.name))
    if not files:
        raise ValueError(f"a folder of arrays must have files that end in {', '.join(SUFFIXES)}; got {path}")
    shards: dict[str, list[Stored]] = {}
    for file in files:
        for name, array in arrays_in(file).items():
            shards.setdefault(name, []).append(array)
    return {
        name: parts[0] if len(parts) == 1 else _stacked(f"{path}:{name}" if name else str(path), parts)
        for name, parts in shards.items()
    }


def arrays_in(path: Path) -> dict[str, Stored]:
    """Return the arrays of a file by name, in its order; the name in an .npy file is "".

    Raises:
        ValueError: if the suffix is unknown, or the file is damaged or holds objects.
    """
    if path.suffix in TORCH:
        return _torch(path)
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    try:
        return readers[path.suffix](path)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if path.suffix not in readers:
            raise ValueError(f"files of arrays must end in {', '.join(SUFFIXES)}; got {path}") from None
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} must be a sound {path.suffix} file of numbers; got one that is not ({reason})"
        ) from None


def split_name(words: str) -> tuple[Path, str | None]:
    """Return a path that exists and the name behind its colon, if there is one.

    Raises:
        ValueError: if there is no such path.
    """
    if Path(words).exists():
        return Path(words), None
    path, colon, name = words.rpartition(":")
    if colon and Path(path).exists():
        return Path(path), name
    raise ValueError(f"arrays must be in a file or a folder that exists; got {words}")


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by size: layer2 before layer10.

    Example:
        >>> sorted(["layer10", "layer2"], key=natural)
        ['layer2', 'layer10']
    """
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def listed(arrays: Iterable[Stored]) -> str:
    """Return the names and shapes of a few arrays."""
    first = list(itertools.islice(arrays, 9))
    return ", ".join(map(str, first[:8])) + (", ..." if len(first) > 8 else "") if first else "none"


def _stacked(name: str, parts: list[Stored]) -> Stored:
    first = parts[0]
    for part in parts:
        if not part.shape or part.shape[1:] != first.shape[1:]:
            raise ValueError(f"shards must have rows of one shape; got {first} and {part}")
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    dtype = jnp.result_type(*(part.dtype for part in parts)) if len({part.dtype for part in parts}) > 1 else first.dtype

    def pieces(rows: int) -> Iterator[np.ndarray]:
        piece, filled = np.empty((rows, *shape[1:]), dtype), 0
        for read in itertools.chain.from_iterable(part.pieces(rows) for part in parts):
            while len(read):
                taken = read[: rows - filled]
                piece[filled : filled + len(taken)] = taken
                filled, read = filled + len(taken), read[len(taken) :]
                if filled == rows:
                    yield piece
                    piece, filled = np.empty((rows, *shape[1:]), dtype), 0
        if filled:
            yield piece[:filled]

    return Stored(name, shape, np.dtype(dtype), pieces)


def _npy(path: Path) -> dict[str, Stored]:
    with path.open("rb") as file:
        shape, in_columns, dtype = _numpy_header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not loaded")
    if in_columns:  # rows are scattered over the file, which only a map can collect
        return {"": _of_array(str(path), lambda: np.load(path, mmap_mode="r"), shape, dtype)}
    return {"": _of_bytes(str(path), lambda: _opened_at(path, start), shape, dtype)}


def _npz(path: Path) -> dict[str, Stored]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, in_columns, dtype = _numpy_header(file)
            if dtype.hasobject:  # only a pickle can hold it
                continue
            name = member.removesuffix(".npy")
            of = f"{path}:{name}"
            if in_columns:
                found[name] = _of_array(of, lambda name=name: _member(path, name), shape, dtype)
            else:
                found[name] = _of_bytes(of, lambda member=member: _opened_member(path, member), shape, dtype)
    return found


def _safetensors(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_BYTES, size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    found = {}
    for name in sorted(header.keys() - {"__metadata__"}, key=natural):
        kind, shape, (first, end) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if kind not in _SAFETENSORS:  # such as float8, which NumPy does not have
            continue
        dtype, start = np.dtype(_SAFETENSORS[kind]), 8 + length + first
        if (
            end - first != dtype.itemsize * int(np.prod(shape, dtype=object))
            or not 0 <= first <= end <= size - 8 - length
        ):
            raise ValueError(f"{name} has offsets {first} to {end}")
        opened = lambda start=start: _opened_at(path, start)  # noqa: E731
        found[name] = _of_bytes(f"{path}:{name}", opened, tuple(shape), dtype)
    return found


def _torch(path: Path) -> dict[str, Stored]:
    if find_spec("torch") is None:
        raise ValueError(
            f"{path} can be read only with PyTorch, which is not installed; install it by: pip install torch"
        )
    torch: Any = __import__("torch")
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of PyTorch before 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # PyTorch has several for damaged files and for pickled objects
        raise ValueError(
            f"{path} must hold tensors or a state dictionary, and no other objects; got one that PyTorch does not read "
            "with weights_only=True (of a whole network, save model.state_dict())"
        ) from None
    found = {}
    for name, tensor in _tensors(content, torch.Tensor, ""):
        of = f"{path}:{name}" if name else str(path)
        with contextlib.suppress(ValueError):  # a tensor that neither NumPy nor JAX can hold
            dtype = as_array(tensor[:0] if tensor.ndim else tensor, of).dtype
            found[name] = _of_array(of, lambda tensor=tensor: tensor, tuple(tensor.shape), dtype)
    return found


def _tensors(content: Any, kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dictionaries, with their keys joined by dots."""
    if isinstance(content, kind):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, kind, f"{prefix}.{key}" if prefix else str(key))


def _numpy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, in_columns, dtype = read[version](file)
    # NumPy stores bfloat16, which is not its own, as two bytes without a meaning.
    return shape, in_columns and len(shape) > 1, np.dtype(jnp.bfloat16) if dtype.str == "|V2" else dtype


def _of_array(name: str, load: Callable[[], Any], shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    """Return an array that a library has opened; its pieces are copies."""

    def pieces(rows: int) -> Iterator[np.ndarray]:
        whole = load()
        for start in range(0, shape[0], rows):
            yield np.array(as_array(whole[start : start + rows], name), order="C").view(dtype)

    return Stored(name, shape, dtype, pieces)


def _of_bytes(name: str, opened: Callable[[], Any], shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    """Return an array whose rows follow each other in a file."""

    def pieces(rows: int) -> Iterator[np.ndarray]:
        size = dtype.itemsize * int(np.prod(shape[1:]))
        with opened() as file:
            for start in range(0, shape[0], rows):
                number = min(rows, shape[0] - start)
                content = np.empty(number * size, np.uint8)
                if _filled(file, content) < content.size:
                    raise ValueError(
                        f"{name} must have {shape[0]} rows; got a file that ends before row {start + number}"
                    )
                yield content.view(dtype).reshape(number, *shape[1:])

    return Stored(name, shape, dtype, pieces)


def _filled(file: Any, content: Any) -> int:
    """Read until an array of bytes is full, or the file ends; return the number of bytes."""
    view, done = memoryview(content), 0
    while done < len(view) and (read := file.readinto(view[done:])):
        done += read
    return done


def _opened_at(path: Path, start: int) -> Any:
    file = io.FileIO(path)
    file.seek(start)
    return file


def _member(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file[name]


@contextlib.contextmanager
def _opened_member(path: Path, member: str) -> Iterator[Any]:
    """Open a member of an archive behind the header of its array."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        _numpy_header(file)
        yield file
