#!/usr/bin/env python3
"""address.py ADDRESS TAG: what is built here tells its address, as a repository alone knows it.

`[project.urls]` of pyproject.toml, and the README's links and pictures, which a package index shows
without the checkout. Changes both files in the present folder: run it before a release is built.
"""

import re
import sys
from pathlib import Path


def with_urls(pyproject, address):
    """Return pyproject.toml with [project.urls]."""
    urls = {"Source": "", "Issues": "/issues", "Changelog": "/blob/main/CHANGELOG.md"}
    table = "".join(f'{name} = "{address}{page}"\n' for name, page in urls.items())
    before, after = pyproject.split("[project.scripts]")
    return f"{before}[project.urls]\n{table}\n[project.scripts]{after}"


def with_links(readme, address, tag):
    """Return the README with links to pages, and pictures from files, of that tag."""
    readme = re.sub(r"(!\[[^]]*\]\()(?=\w[^:)]*\))", rf"\1{address}/raw/{tag}/", readme)
    return re.sub(r"(\]\()(?=\w[^:)]*\))", rf"\1{address}/blob/{tag}/", readme)


if __name__ == "__main__":
    address, tag = sys.argv[1:]
    for path, text in (
        ("pyproject.toml", with_urls(Path("pyproject.toml").read_text(), address)),
        ("README.md", with_links(Path("README.md").read_text(), address, tag)),
    ):
        Path(path).write_text(text)
