"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

import importlib
import inspect
import os
import pkgutil
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for this process and the notebooks' kernels
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import keras  # noqa: E402

import tfdde  # noqa: E402

project = "tfdde"
author = "tfdde developers"
version = release = tfdde.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"tfdde {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Notebooks run once; as long as their code stays, the build takes their output from the cache.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # TensorFlow's notes on the machine

napoleon_use_ivar = True  # attributes as a list in their class
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Keras's are in Markdown
autodoc_typehints = "none"  # the docstrings give shapes and units

# -- Mathematics as MathML, which browsers draw without a script from elsewhere -----------------


def inline_math(translator, node):
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def display_math(translator, node):
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


# -- Docstrings: plain text, whose stars and bars mean what they say ----------------------------


def plain(app, what, name, obj, options, lines):
    """Escape reStructuredText's markup outside of ``literals`` and examples."""
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = re.split(r"(``.*?``)", line)
            parts[::2] = [re.sub(r"[*|]|(?<=\w)_(?![\w:])", r"\\\g<0>", p) for p in parts[::2]]
            lines[i] = "".join(parts)


def constructor(app, what, name, obj, options, signature, returns):
    """Show the arguments of ``__init__``, where Keras has a ``__new__`` that takes anything."""
    if what == "class" and issubclass(obj, keras.Model | keras.layers.Layer):
        arguments = list(inspect.signature(obj.__init__).parameters.values())[1:]
        shown = inspect.Signature([a.replace(annotation=a.empty) for a in arguments])
        return str(shown), returns
    return None


def not_ours(app, what, name, obj, skip, options):
    """Leave out what Keras and Python add to our classes, and scikit-learn's metadata routing."""
    function = getattr(obj, "fget", obj)
    of_class = getattr(function, "__objclass__", None)  # of a method of Python's own
    owner = getattr(of_class or function, "__module__", None) or "tfdde"
    foreign = options.inherited_members and not owner.startswith("tfdde")
    return True if foreign or re.fullmatch(r"set_\w+_request", name) else None


# -- The API reference: one page a room, from the modules that there are -------------------------

ROOMS = """
    models networks noise losses optimizers partition recipes tables datasets metrics plots
    anomalies tuning sklearn runs serving scoring beam explore utils
""".split()  # noqa: SIM905
# Classes whose methods are shown with the class that users make.
PARTS = ("SmoothedDensity", "NormalizedDensity", "Sampler")
PAGE = """# `{name}`

```{{eval-rst}}
.. automodule:: {name}
{options}
```
"""


def exported(module):
    """The public names of a module: ``__all__``, or else what it defines."""
    own = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
    return list(getattr(module, "__all__", own))


def section(module, names):
    options = f"   :members: {', '.join(names)}" if names else ""
    if module.__name__ == "tfdde.models":  # with the methods of PARTS
        options += "\n   :inherited-members: Trainer, Exception"
    return PAGE.format(name=module.__name__, options=options)


def write_reference():
    """Write ``api/ROOM.md`` for each room; names that a package exports are shown there only."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    for room in ROOMS:
        package = importlib.import_module(f"tfdde.{room}")
        shown = {*exported(package), *PARTS}
        text = section(package, exported(package))
        for info in pkgutil.walk_packages(getattr(package, "__path__", []), f"tfdde.{room}."):
            if info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            if names := [name for name in exported(module) if name not in shown]:
                text += "\n#" + section(module, names)
        page = folder / f"{room}.md"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def setup(app):
    write_reference()
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", constructor)
    app.connect("autodoc-skip-member", not_ours)


html_math_renderer = "mathml"
