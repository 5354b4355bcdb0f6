"""Packages that only parts of nc_jax need, and the sentence for those who lack one.

The mathematics needs jax, jaxopt, jaxtyping, numpy and scipy. Every other package belongs to an extra of the
distribution, such as nc_jax[plots].
"""

from importlib.util import find_spec

# The packages that an extra brings, by the names under which they are imported.
EXTRAS = {
    "flax": ("flax",),
    "train": ("flax", "optax", "orbax", "flatbuffers", "grain", "tensorboardX"),
    "data": ("tensorflow_datasets", "importlib_resources", "sklearn", "dm_pix", "PIL", "matplotlib"),
    "plots": ("matplotlib",),
}
EXTRAS["experiments"] = tuple(dict.fromkeys(EXTRAS["train"] + EXTRAS["data"] + EXTRAS["plots"]))


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that this part of nc_jax needs. The message names the extra that brings it."""


def require(package: str, extra: str, what: str) -> None:
    """Raise an error that says what to install, unless a package is there.

    Args:
        package: name under which the package is imported.
        extra: the extra of nc_jax that brings it.
        what: what needs it, as the sentence's subject.

    Raises:
        MissingExtraError: if the package is not installed.

    Example:
        >>> require("jax", "flax", "nc_jax.models")
        >>> require("no_such_package", "plots", "a picture")
        Traceback (most recent call last):
        nc_jax.extras.MissingExtraError: a picture needs no_such_package; install it by: pip install 'nc_jax[plots]'
    """
    if find_spec(package) is None:
        raise MissingExtraError(f"{what} needs {package}; install it by: pip install 'nc_jax[{extra}]'", name=package)


def require_all(extra: str, what: str) -> None:
    """Raise an error that says what to install, unless every package of an extra is there.

    Args:
        extra: a key of `EXTRAS`.
        what: what needs it, as the sentence's subject.

    Raises:
        MissingExtraError: if one of the packages is not installed.
    """
    for package in EXTRAS[extra]:
        require(package, extra, what)
