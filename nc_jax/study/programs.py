"""Compiled programs that the groups of a comparison share."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

# Programs that take less time (in seconds) are sooner compiled than read from a file.
WORTH_KEEPING = 0.3


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Keep compiled programs in temporary files, so that a program that many groups have is compiled once.

    Groups that differ in a method's loss, or in a size that is no shape, have the same programs of evaluation. (For 17
    methods of continual learning on digits, this takes 30 s of compilation to 7 for all but the first.) If the user has
    named a folder for JAX's compilation cache, that one is used and kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    least = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory(prefix="nc_jax-programs-") as folder:
        _use(folder, WORTH_KEEPING)
        try:
            yield
        finally:
            _use(None, least)


def _use(folder: str | None, least: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()  # JAX decides once whether there is a cache
