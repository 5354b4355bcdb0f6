"""Where the experiments are: in a checkout beside nc_jax, in an installation within it."""

import importlib.util
import sys
from pathlib import Path

import nc_jax

NAME = "experiments"


def import_experiments() -> Path:
    """Make `import experiments` possible and return the folder of that package.

    The folder is not put on `sys.path`, and an installation has no top-level package of so common a name: a folder of
    the user's own that is called experiments stays out of the way.

    Raises:
        FileNotFoundError: if neither place has experiments.
    """
    package = Path(nc_jax.__file__).parent
    places = [package / NAME, package.parent / NAME]
    folder = next((place for place in places if (place / "__main__.py").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"the experiments must be in one of {', '.join(map(str, places))}; got neither")
    there = sys.modules.get(NAME)
    if there is None or Path(there.__path__[0]) != folder:
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return folder
