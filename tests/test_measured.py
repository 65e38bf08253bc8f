"""Recorded tables say what they were taken with; those of other kernels than these say so."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", CHECKOUT / "bench/README.md", *CHECKOUT.glob("docs/*.md")]
STAMP = re.compile(r"commit (\S+),\s+kernels\s+(\w{8})(,\s+since\s+changed)?")
# Between these a command puts its table.
RECORDED = re.compile(r"<!-- (measured: |bench:begin).*?<!-- (measured|bench):end -->", re.DOTALL)

spec = importlib.util.spec_from_file_location("measured", CHECKOUT / "bench/measured.py")
measured = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measured)


def name(page):
    return page.relative_to(CHECKOUT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_commit_is_named_with_its_kernels(page):
    text = page.read_text("utf-8")
    assert len(re.findall(r"commit [0-9a-f]{7}", text)) == len(STAMP.findall(text))


def test_every_recorded_table_says_commit_and_kernels():
    tables = [table[0] for page in PAGES for table in RECORDED.finditer(page.read_text("utf-8"))]
    assert len(tables) >= 5
    for table in tables:
        assert STAMP.search(table), table.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_table_of_other_kernels_says_so(page):
    for commit, kernels, changed in STAMP.findall(page.read_text("utf-8")):
        old = kernels != measured.present()
        advice = "take it anew (CONTRIBUTING.md), or write" if old else "drop"
        assert old == bool(changed), f"table of commit {commit}: {advice} 'since changed'"


def test_the_digest_is_of_the_code_alone():
    files = {path.name: path.read_text("utf-8") for path in (CHECKOUT / "src").iterdir()}
    assert measured.kernels(files.get) == measured.present()
    for file, old, new, counts in [
        ("sums.pxi", "# Sums over", "# Sum over", False),
        ("forward.pxi", '"""The sums', '"""Sums', False),
        ("simd.h", "/* Vectors", "/* A vector", False),
        ("sums.pxi", "if parts > 16:", "if parts > 15:", True),
        ("simd.h", "#define LANES 32", "#define LANES 16", True),
        ("caches.pxi", "cdef bint FETCHES", "cdef int FETCHES", False),  # no arithmetic
    ]:
        assert old in files[file]
        changed = files | {file: files[file].replace(old, new)}
        assert (measured.kernels(changed.get) != measured.present()) == counts, (file, new)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_commit_has_its_own_kernels(tmp_path, monkeypatch):
    """As a record names it, with or without changes; and where git knows nothing."""
    (tmp_path / "src").mkdir()
    for name in ("kernels.pxi", "simd.h"):
        (tmp_path / "src" / name).write_text("one\n")
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    assert measured.at("HEAD") == "unknown"
    then = measured.present()
    measured.git("init")
    measured.git("add", "src")
    measured.git("-c", "user.name=a", "-c", "user.email=a", "commit", "-m", "one")
    (tmp_path / "src" / "simd.h").write_text("two\n")
    commit = measured.git("rev-parse", "--short", "HEAD")
    assert measured.at(commit) == measured.at(f"{commit}-dirty") == then
    assert then != measured.present()
    assert measured.at(None) == measured.at("0123abc") == "unknown"
    assert measured.line("CPU", "v3", commit, then).endswith(f"kernels {then}, since changed")


def test_a_page_is_taken_anew(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- measured: python -c 'print(6 * 7)' -->\nold\n<!-- measured:end -->\nb\n"
        "<!-- measured: python -c 'print(\"| --- |\")' -->\n<!-- measured:end -->\n"
    )
    monkeypatch.setattr("sys.argv", ["measured.py", str(page)])
    measured.main()
    text = page.read_text()
    assert "old" not in text
    assert "```text\n$ python -c 'print(6 * 7)'\n42\n```\n<!-- measured:end -->\nb\n" in text
    assert text.endswith(".\n\n| --- |\n<!-- measured:end -->\n")
    kernels = [kernels for _, kernels, changed in STAMP.findall(text) if not changed]
    assert kernels == [measured.present()] * 2
