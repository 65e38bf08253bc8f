"""The folders of src/ are layers: a file uses only its own folder and those below. A module is put
together from includes: a file uses only those above it, and cimports what it uses of a header.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
LAYERS = ["machine", "kernels", "schedule", "door"]  # jax stands on the public fastrms.h alone
FILES = sorted(path.relative_to(SRC).as_posix() for path in SRC.glob("*/*.*"))
MODULES = ["door/_core.pyx", "kernels/table.pxi"]
INCLUDE = re.compile(r'^# gives (.*);\s(?:# )?uses (.*)\ninclude "(.*)"$', re.MULTILINE)
IMPORT = re.compile(r"^(?:from .* c?import (?:\([^)]*\)|.*)|c?import .*|include .*)$", re.MULTILINE)


def text(file):
    return (SRC / file).read_text("utf-8")


def code(file):
    """Return a Cython file without imports, comments and strings, but what f-strings insert."""
    source = re.sub(r'"""[\s\S]*?"""', "", IMPORT.sub("", text(file)))
    source = re.sub(r'(f?)"(?:[^"\\\n]|\\.)*"', inserted, source)
    return re.sub(r"#.*", "", source)


def inserted(string):
    return " ".join(re.findall(r"\{(.*?)\}", string[0])) if string[1] else ""


def names(file):
    """Return the identifiers in a file that are no attributes."""
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", code(file)))


def defined(file):
    """Return the names that a file defines at its top level."""
    found = set(re.findall(r"^(?:cdef (?:enum|struct)|def) (\w+)", code(file), re.MULTILINE))
    found |= set(
        re.findall(r"^cdef (?!enum|struct)[^=(\n]*?(\w+)(?:\(| =|$)", code(file), re.MULTILINE)
    )
    for block in re.findall(r"^cdef enum.*:\n((?:    .*\n)+)", code(file), re.MULTILINE):
        found |= set(re.findall(r"^    (\w+)", block, re.MULTILINE))
    return found


def folders(file):
    """Return the folders that a file names: of its cimports, includes and headers."""
    source = text(file)
    named = re.findall(r"^from (\w+)\.\w+ cimport", source, re.MULTILINE)
    return named + re.findall(r'^(?:cdef extern from|#?include) "(\w+)/', source, re.MULTILINE)


@pytest.mark.parametrize("file", FILES)
def test_a_folder_uses_itself_and_those_below(file):
    folder = file.split("/")[0]
    above = [*LAYERS[LAYERS.index(folder) + 1 :], "jax"] if folder in LAYERS else LAYERS
    assert not set(folders(file)) & set(above)


def test_headers_include_each_other_in_no_circle():
    included = {
        file: {
            name if "/" in name else f"{file.split('/')[0]}/{name}"
            for name in re.findall(r'#\s*include "(.*)"', text(file))
        }
        for file in FILES
        if file.endswith(".h")
    }
    while leaves := [file for file, others in included.items() if not others & included.keys()]:
        for file in leaves:
            del included[file]
    assert not included


@pytest.mark.parametrize("module", MODULES)
def test_an_include_says_what_it_gives_and_uses(module):
    """And uses nothing that a later one gives."""
    above = {}  # file: the names that it gives
    includes = [(m[3], m[1], m[2]) for m in INCLUDE.finditer(text(module))]
    assert len(includes) == len(re.findall("^include ", text(module), re.MULTILINE)) > 5
    everything = {file: defined(file) for file, _, _ in includes}
    for number, (file, gives, uses) in enumerate(includes):
        patterns = [] if gives == "nothing" else gives.split(", ")
        used = names(file)
        stems = {Path(other).stem for other, given in above.items() if given & used}
        assert stems == (set() if uses == "nothing" else set(uses.split(", "))), file
        later = [other for other, _, _ in includes[number + 1 :]] + [module]
        users = set().union(*map(names, later))
        given = {name for name in everything[file] if any(fnmatch(name, p) for p in patterns)}
        for pattern in patterns:
            assert any(fnmatch(name, pattern) for name in given & users), (file, pattern)
        public = set(re.findall(r"^def (\w+)", code(file), re.MULTILINE))
        assert not (everything[file] - given - public) & users, file
        for other in later[:-1]:
            assert not everything[other] & used - everything[file], (file, other)
        above[file] = given


def declared(pxd):
    """Return the names that a .pxd declares, but the fields of its structs."""
    source = text(pxd).replace(" nogil:", ":")
    source = re.sub(r"struct (\w+):.*\n(?:    .*\n)+", r"struct \1:\n", source)
    found = re.findall(
        r"^\s*(?:ctypedef|cdef) [^(\n]*?(?:\(\*)?\b(?!enum:)(\w+)(?:\)|:|$)", source, re.MULTILINE
    )
    return set(found) | set(
        re.findall(
            r"^ +(?!enum:)(?:[\w ]+?[ *]+)?(\w+)(?:\(| =| *\"| *#| *$)", source, re.MULTILINE
        )
    )


PXDS = [file for file in FILES if file.endswith(".pxd")]
SOURCES = [file for file in FILES if file.endswith((".pxi", ".pyx"))]


@pytest.mark.parametrize("file", SOURCES)
def test_a_file_cimports_what_it_uses_of_a_header(file):
    imports = " ".join(IMPORT.findall(text(file)))
    for pxd in PXDS if file.startswith("kernels/") else set(PXDS) - {"kernels/simd.pxd"}:
        used = declared(pxd) & names(file) - defined(file)
        assert used <= set(re.findall(r"\w+", imports)), pxd


@pytest.mark.parametrize("file", SOURCES)
def test_a_file_uses_what_it_cimports(file):
    for pxd, cimported in re.findall(
        r"^from ([\w.]+) cimport (\([^)]*\)|.*)", text(file), re.MULTILINE
    ):
        assert set(re.findall(r"\w+", cimported)) <= names(file), pxd


def test_each_header_is_declared_once():
    headers = [name for pxd in PXDS for name in re.findall('cdef extern from "(.*?)"', text(pxd))]
    assert len(headers) == len(set(headers)) >= 6
    assert not [file for file in SOURCES if "cdef extern" in text(file)]
