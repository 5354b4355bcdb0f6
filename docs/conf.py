"""Sphinx configuration; `make docs` builds with warnings as errors."""

import importlib
import importlib.metadata
import inspect
import re

from nc_jax.commands.experiments_folder import import_experiments
from nc_jax.study.listing import experiments_in
from nc_jax.study.progress import duration


def experiments():
    """Return a table of the experiments: question, name, and the time of the preset default."""
    rows = ["| question | `nc-jax run` | time |", "|---|---|---|"]
    for name, header in experiments_in(import_experiments()).items():
        about = getattr(importlib.import_module(f"experiments.{name}"), "ABOUT", {}).get("default")
        time = duration(60 * about.minutes) if about and about.minutes else "not measured" if about else "seconds"
        rows.append(f"| {header.splitlines()[0]} | `{name}` | {time} |")
    return "\n".join(rows)


project = "nc_jax"
author = "The nc_jax authors"
copyright = "The nc_jax authors"
release = version = importlib.metadata.version("nc_jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # formulas render without a network
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nc_jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
templates_path = ["_templates"]
# furo's own, with the version below the name of the project
_SIDEBAR = ["brand", "version", "search", "scroll-start", "navigation", "scroll-end"]
html_sidebars = {"**": [f"sidebar/{part}.html" for part in _SIDEBAR]}

# colon_fence: directives between colons, so that a block between backticks is always code
myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_substitutions = {"version": release, "experiments": experiments()}
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "special-members": "__call__"}
autodoc_preserve_defaults = True
autosummary_generate = False  # the lists at the top of the pages link to what stands below them
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_use_ivar = True
napoleon_use_rtype = False

# Signatures as a person would write them: shapes as FloatArray[dim, classes], and without what Linen adds to them.
ARRAY = re.compile(
    r"(Float|Int|Bool|Integer|Inexact|Shaped|Num)\[(?:Array|ndarray|np\.ndarray|numpy\.ndarray), '([^']*)'\]"
)
WRITTEN = [
    (
        r"Key\[jaxlib._jax.Array, ''\] \| UInt32\[jaxlib._jax.Array, '2'\] \| UInt32\[jaxlib._jax.Array, '4'\]",
        "PRNGKeyArray",
    ),
    (r"str \| type\[Any\] \| dtype \| SupportsDType", "DTypeLike"),
    (r"(, )?parent: [^=]* = <flax\.linen\.module\._Sentinel object>, name: str \| None = None", ""),
    (r"<function (\w+)>", r"\1"),
    (r"~?(jaxlib\._jax|jaxtyping|collections\.abc)\.", ""),
]
# Math directives, doctests, backticks, escapes: left alone. A bare * or | is mathematics, "K." starts no list.
MARKUP = re.compile(
    r"^([ ]*)\.\.[ ]math::.*(?:\n(?:\1[ ]+.*|[ ]*$))* | ^[ ]*>>>.*(?:\n[ ]*\S.*)* | (`+)(?:.|\n)+?\2 | \\."
    r"| (?P<bare>[*|] | (?<=:[ ])\w\.$)",
    re.MULTILINE | re.VERBOSE,
)


def shaped(match):
    return f"{match[1].replace('Integer', 'Int')}Array[{', '.join(match[2].split()) or '()'}]"


def as_written(text):
    for found, written in WRITTEN:
        text = text and re.sub(found, written, text)
    return text and ARRAY.sub(shaped, text)


def process_signature(app, what, name, obj, options, signature, returns):
    return as_written(signature), as_written(returns)


def process_docstring(app, what, name, obj, options, lines):
    text = as_written("\n".join(lines))
    lines[:] = MARKUP.sub(lambda match: f"\\{match[0]}" if match["bare"] else match[0], text).split("\n")
    if what == "module":
        lines += contents(obj)


def contents(module):
    """List what a module documents, with one line about each."""
    public = getattr(module, "__all__", None) or [
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    listed = [key for key in public if getattr(vars(module).get(key), "__doc__", None) and callable(vars(module)[key])]
    names = [f"   {key}" for key in listed]
    return ["", ".. autosummary::", "   :nosignatures:", "", *names, ""] if len(names) > 1 else []


def skip_member(app, what, name, obj, skip, options):
    # A NamedTuple documents each field as "Alias for field number n"; a field whose default is a function is no method.
    is_field = type(obj).__name__ == "_tuplegetter" or (inspect.isfunction(obj) and "." not in obj.__qualname__)
    return True if what == "class" and is_field else None


def setup(app):
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-process-docstring", process_docstring, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", skip_member)
