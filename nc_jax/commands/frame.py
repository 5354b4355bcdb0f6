"""Class vectors of a frame: their properties, and a file of them that NumPy or PyTorch reads.

Usage: nc-jax frame KIND --dim D [--num-classes K] [--seed N] [--hierarchy TREE] [--out FILE] [--torch]

KIND is
  simplex         K vectors that are as far apart as possible; needs D >= K - 1
  orthogonal      non-negative vectors that share no feature; needs D >= K
  hierarchical    vectors whose cosines follow the distances in a label tree, which --hierarchy names
  hyperspherical  vectors spread over the sphere with the least energy, also for K > D + 1
  random          vectors drawn from the sphere, which needs --seed

FILE ends in .npy, .npz, .safetensors or .pt, and holds the class vectors as columns, shape (D, K). With --torch it
holds the state of a torch.nn.Linear(D, K) instead: weight, shape (K, D), and a bias of zeros. Without --out, the
properties are shown and nothing is written.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nc_jax import frames
from nc_jax.extras import require
from nc_jax.files import check_new_file, write_atomically
from nc_jax.frames import properties
from nc_jax.solvers import describe
from nc_jax.study.cli import parse
from nc_jax.study.tables import Table, show_table

Kind = Literal["simplex", "orthogonal", "hierarchical", "hyperspherical", "random"]
ENDINGS = (".npy", ".npz", ".safetensors", ".pt")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frame, and where to write it.

    Attributes:
        kind: geometry of the class vectors.
        dim: feature dimension D.
        num_classes: number of classes K. None: that of the label tree.
        seed: draws the orientation of the frame, or its vectors. None takes the canonical orientation.
        hierarchy: label tree of a hierarchical frame: cifar100, digits, or a file that `nc_jax.data.hierarchies.load`
            reads. The class vectors are in the order of the classes' names.
        out: file to write, which must not exist yet. None writes none.
        torch: write the state of a torch.nn.Linear(D, K): its weight, shape (K, D), and a bias of zeros.
    """

    kind: tyro.conf.Positional[Kind]
    dim: int
    num_classes: int | None = None
    seed: int | None = None
    hierarchy: str | None = None
    out: Path | None = None
    torch: bool = False


class Made(NamedTuple):
    """A frame, and what is known of it.

    Attributes:
        frame: class vectors as columns, shape (D, K).
        gram: the inner products that it is to have, shape (K, K); None if they are not prescribed.
        class_names: K names; none if the classes have no names.
        note: a sentence on how it was found; "" if there is nothing to say.
    """

    frame: np.ndarray
    gram: np.ndarray | None
    class_names: tuple[str, ...] = ()
    note: str = ""


def main(words: Sequence[str]) -> None:
    """Show the properties of a frame, and write it."""
    config = parse(Config, words, header=__doc__)
    check(config)
    made = make(config)
    if not np.isfinite(made.frame).all():
        raise ValueError(f"class vectors must be finite; got NaN: {made.note}")
    show_table(table_of(config, made))
    if made.note:
        print(made.note)
    if config.out is not None:
        write_atomically(config.out, content_of(config, made))
        print(f"written to {config.out}")


def check(config: Config) -> None:
    """Raise a ValueError if options do not go together, before anything is computed.

    Raises:
        FileExistsError: if there is something where the file is to be written.
        MissingExtraError: if the file's format needs a package that is not installed.
    """
    if (config.kind == "hierarchical") != (config.hierarchy is not None):
        raise ValueError(
            f"a hierarchical frame, and no other, needs a label tree (--hierarchy); got {config.hierarchy} for "
            f"a {config.kind} frame"
        )
    if config.num_classes is None and config.hierarchy is None:
        raise ValueError(f"a {config.kind} frame needs the number of classes (--num-classes); got none")
    if config.kind == "random" and config.seed is None:
        raise ValueError("random class vectors need a key; got None (--seed 0)")
    if config.torch and config.out is None:
        raise ValueError("--torch says what is written, so it needs --out; got none")
    if config.out is None:
        return
    check_new_file(config.out, ENDINGS)
    if config.torch and config.out.suffix == ".npy":
        raise ValueError(f"the state of a layer has two arrays, and .npy holds one; got --torch with {config.out}")
    if config.out.suffix == ".safetensors":
        require("safetensors", "safetensors", "a .safetensors file")
    if config.out.suffix == ".pt":
        require("torch", "torch", "a .pt file")


def make(config: Config) -> Made:
    """Make the frame that is asked for.

    Raises:
        ValueError: if there is no such frame; the sentence is that of `nc_jax.frames`.
    """
    key = None if config.seed is None else jax.random.key(config.seed)
    if config.hierarchy is not None:
        from nc_jax.data import hierarchies
        from nc_jax.hierarchy import similarity

        tree = hierarchies.load(config.hierarchy)
        wanted = similarity(tree.distances())
        count = len(tree.classes) if config.num_classes is None else config.num_classes
        frame = frames.hierarchical_constructor(wanted)(count, config.dim, key=key)
        return Made(np.asarray(frame), wanted, tree.classes)
    count: Any = config.num_classes
    if config.kind == "hyperspherical":
        frame = frames.hyperspherical(count, config.dim, key=key)
        solution = frames.hyperspherical_solution(count, config.dim)  # what was just computed is stored
        if solution.name is not None:
            note = f"proven optimum: {solution.name}"
        else:
            note = (
                f"best local optimum of {len(solution.values)} starts, which may not be the global one; its solve: "
                f"{describe(solution.status)}"
            )
        return Made(np.asarray(frame), _simplex(count) if config.dim >= count - 1 else None, note=note)
    functions = {
        "simplex": (frames.simplex_etf, _simplex),
        "orthogonal": (frames.nonnegative_orthogonal, np.eye),
        "random": (frames.random_unit, lambda _: None),
    }
    construct, gram = functions[config.kind]
    return Made(np.asarray(construct(count, config.dim, key=key)), gram(count))


def _simplex(count: int) -> np.ndarray:
    return (count * np.eye(count) - 1) / (count - 1)


def table_of(config: Config, made: Made) -> Table:
    """Return what defines a frame: lengths, angles, the error of its Gram matrix, its rank."""
    frame, count = jnp.asarray(made.frame), made.frame.shape[1]
    products, pairs = np.asarray(properties.gram(frame), float), ~np.eye(count, dtype=bool)
    cosines = np.asarray(properties.cosines(frame), float)[pairs]
    rows = [["lengths", _range(np.sqrt(np.diagonal(products)))]]
    if cosines.size:
        rows += [["cosines of pairs", _range(cosines)], ["angles of pairs, degrees", _range(_degrees(cosines))]]
    if made.gram is not None:
        rows.append(["largest error of the Gram matrix", f"{np.abs(products - made.gram).max():.1e}"])
    rows += [
        ["rank", str(np.linalg.matrix_rank(made.frame))],
        ["length of the sum of the vectors", f"{np.linalg.norm(made.frame.sum(axis=1, dtype=float)):.3g}"],
        ["tight on its span", "yes" if properties.is_tight(frame) else "no"],
    ]
    orientation = "canonical orientation" if config.seed is None else f"seed {config.seed}"
    title = f"{config.kind} frame of {count} classes in {config.dim} dimensions, {orientation}"
    return Table(title, ["property", "value, or least to largest"], rows)


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.6g}", f"{values.max():.6g}"
    return low if low == high else f"{low} to {high}, mean {values.mean():.6g}"


def _degrees(cosines: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def content_of(config: Config, made: Made) -> bytes:
    """Return the content of the file."""
    ending = "" if config.out is None else config.out.suffix
    arrays: Mapping[str, np.ndarray] = {"frame": made.frame}
    if config.torch:
        bias = np.zeros(made.frame.shape[1], made.frame.dtype)
        arrays = {"weight": np.ascontiguousarray(made.frame.T), "bias": bias}
    if ending == ".safetensors":
        from safetensors.numpy import save  # pyright: ignore[reportMissingImports]

        return save(dict(arrays))
    content = io.BytesIO()
    if ending == ".pt":
        import torch  # pyright: ignore[reportMissingImports]

        torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, content)
    elif ending == ".npy":
        np.save(content, made.frame, allow_pickle=False)
    else:
        names = {"class_names": np.array(made.class_names)} if made.class_names else {}
        np.savez(content, allow_pickle=False, **arrays, **names)
    return content.getvalue()
