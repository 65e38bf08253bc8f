"""Recorded tables say where, with what and when they were taken."""

import datetime
import importlib.util
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", CHECKOUT / "bench/README.md", *CHECKOUT.glob("docs/*.md")]
# `COMMAND`: CPU, instruction set, commit and, in newer tables, date.
STAMP = re.compile(
    r"^`([^`]+)`: [^,]+, (?:baseline|v3|v4), commit ([0-9a-f]{7,}|unknown)(?:, (\d{4}-\d\d-\d\d))?",
    re.MULTILINE,
)
# Between these a command puts its table.
RECORDED = re.compile(r"<!-- (measured: |bench:begin).*?<!-- (measured|bench):end -->", re.DOTALL)

spec = importlib.util.spec_from_file_location("measured", CHECKOUT / "bench/measured.py")
measured = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measured)


def test_every_recorded_table_says_command_cpu_and_commit():
    tables = [table[0] for page in PAGES for table in RECORDED.finditer(page.read_text("utf-8"))]
    assert len(tables) >= 5
    for table in tables:
        stamp = STAMP.search(table)
        assert stamp, table.splitlines()[0]
        marker = measured.TABLE.match(table)
        assert stamp[1] == (marker[2] if marker else "python bench/record.py")


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    assert measured.commit() is None
    assert measured.line("CPU", "v3", None, "2026-11-29") == "CPU, v3, commit unknown, 2026-11-29"


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
    stamps = STAMP.findall(text)
    assert [command for command, _, _ in stamps] == [
        "python -c 'print(6 * 7)'",
        "python -c 'print(\"| --- |\")'",
    ]
    for _, commit, date in stamps:
        assert commit == (measured.commit() or "unknown")
        assert abs(datetime.date.fromisoformat(date) - datetime.date.today()).days <= 1
