"""The files of a tiny published model."""

from pathlib import Path

import pytest

from tests.published_files import Tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)
