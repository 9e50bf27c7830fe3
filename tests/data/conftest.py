"""A cache of the test's own, and a count of what is decoded."""

import pytest

from robustviz.data import folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, and not taken from the cache."""
    files, read = [], folder.read_picture
    monkeypatch.setattr(folder, "read_picture", lambda file: files.append(file) or read(file))
    return files
