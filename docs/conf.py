"""The site, from the pages as they stand in the checkout: .ci/gates/docs builds it.

The source folder is the checkout itself, so that every link between pages is the same here and
there, and the README is the first page. Only its contents are added, in `complete`.
"""

import ast
from pathlib import Path

import fastrms

ROOT = Path(__file__).parents[1]

project, author = "fastrms", "fastrms contributors"
version = release = fastrms.__version__
root_doc = "README"
include_patterns = ["*.md", "bench/README.md", "docs/**"]
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
myst_heading_anchors = 4
default_role = "py:obj"
numpydoc_show_class_members = False
autodoc_mock_imports = ["jax", "llvmlite", "numba", "torch"]
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"fastrms {version}"
templates_path = ["_templates"]
html_additional_pages = {"index": "index.html"}  # to the README
html_copy_source = html_show_copyright = False

CONTENTS = """
```{toctree}
:hidden:
:glob:

docs/replace
docs/benchmarks
docs/guide
docs/api
docs/*
How it is measured <bench/README>
CHANGELOG
CONTRIBUTING
CODE_OF_CONDUCT
SECURITY
```
"""


def complete(app, page, source):
    """Give the README the site's contents."""
    if page == root_doc:
        source[0] += CONTENTS


# ---- signatures: those of the stub, all overloads in one --------------------------------------

STUB = ast.parse((ROOT / "fastrms/_core.pyi").read_text("utf-8")).body
# A type variable stands for its bound, and the stub's private names for what the API page defines.
NAMES = {
    node.targets[0].id: ast.unparse(node.value.keywords[0].value)
    for node in STUB
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
}
NAMES |= {"_ArrayOf[_DType]": "Array", "NDArray[_DType]": "NDArray"}


def union(types):
    """Return the union of annotations as text; tuples are joined place by place."""
    if all(ast.unparse(one).startswith("tuple") for one in types):
        places = zip(*(one.slice.elts for one in types), strict=True)
        return f"tuple[{', '.join(map(union, places))}]"
    parts = [NAMES.get(part, part) for one in types for part in ast.unparse(one).split(" | ")]
    parts = ["bool" if part == "Literal[False]" else part.lstrip("_") for part in parts]
    return " | ".join(sorted(dict.fromkeys(parts), key="None".__eq__))


def parameters(overload):
    """Return (parameter, its default or None, whether it is keyword-only) of one overload."""
    args = overload.args
    pairs = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    places = [None] * (len(args.args) - len(args.defaults)) + args.defaults
    return [
        *((arg, default, False) for arg, default in zip(args.args, places, strict=True)),
        *((arg, default, True) for arg, default in pairs),
    ]


def signature(name):
    """Return the parameters and the result of a function of the stub, as text, or None."""
    overloads = [node for node in STUB if isinstance(node, ast.FunctionDef) and node.name == name]
    if not overloads:
        return None
    words, star = [], False
    for same in zip(*map(parameters, overloads), strict=True):
        if same[0][2] and not star:
            star = True
            words.append("*")
        default = next((default for _, default, _ in same if default is not None), None)
        value = f" = {ast.unparse(default)}" if default is not None else ""
        words.append(f"{same[0][0].arg}: {union([arg.annotation for arg, _, _ in same])}{value}")
    return f"({', '.join(words)})", union([overload.returns for overload in overloads])


def take_signature(app, what, name, thing, options, args, result):
    if getattr(thing, "__module__", None) == "fastrms._core":
        return signature(name.rpartition(".")[2])
    return None


def setup(app):
    app.connect("source-read", complete)
    app.connect("autodoc-process-signature", take_signature)
