#!/usr/bin/env python3
"""address.py ADDRESS TAG: write the repository's address into the files of a release.

It fills in `[project.urls]` of pyproject.toml, and makes the README's links absolute, since a
package index shows it without the checkout. Run it in the checkout before the build.
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
    """Return the README with absolute links to the pages of that tag."""
    return re.sub(r"(\]\()(?=\w[^:)]*\))", rf"\1{address}/blob/{tag}/", readme)


def change(path, new, *arguments):
    path = Path(path)
    path.write_text(new(path.read_text("utf-8"), *arguments), "utf-8")


if __name__ == "__main__":
    address, tag = sys.argv[1:]
    change("pyproject.toml", with_urls, address)
    change("README.md", with_links, address, tag)
