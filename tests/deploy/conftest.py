"""What the tests of deploy/ share."""

from pathlib import Path

import pytest

from tests.deploy.deployed import certified


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a certificate for the five services and its authority."""
    return certified(tmp_path_factory.mktemp("tls"))
