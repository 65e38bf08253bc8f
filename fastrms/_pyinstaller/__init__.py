"""Tell PyInstaller, through an entry point in pyproject.toml, where fastrms' hook lies."""

from pathlib import Path


def hook_folders() -> list[str]:
    return [str(Path(__file__).parent)]
