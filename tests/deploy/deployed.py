"""The five services as a deployment sees them: their settings, and what must be beside them."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
import trustme

from services.common.runtime.settings import ServiceSettings
from services.control.config import ControlSettings
from services.ingest.config import IngestSettings
from services.metering.config import Settings as MeteringSettings
from services.reporting.config import ReportingSettings
from services.vending.config import VendingSettings

SETTINGS: Mapping[str, type[ServiceSettings]] = {
    "ingest": IngestSettings,
    "metering": MeteringSettings,
    "vending": VendingSettings,
    "control": ControlSettings,
    "reporting": ReportingSettings,
}
PREFIX = "WATTVEND_"
TLS = PurePosixPath("/tls")


def known_names(kind: type[ServiceSettings]) -> set[str]:
    """Return the environment variables that a service reads."""
    return {kind.env_name(name) for name in kind.model_fields}


def certified(directory: Path) -> Path:
    """Write tls.crt, tls.key and ca.crt for the services, and return the directory."""
    authority = trustme.CA()
    names = ("localhost", "127.0.0.1", *SETTINGS)
    certificate = authority.issue_cert(*names)
    certificate.private_key_pem.write_to_path(directory / "tls.key")
    directory.joinpath("tls.crt").write_bytes(
        b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    )
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return directory


def here(environment: Mapping[str, str], tls: Path) -> dict[str, str]:
    """Return an environment whose paths below /tls are those of a directory of this machine."""
    return {
        name: str(tls / PurePosixPath(value).relative_to(TLS))
        if value.startswith(f"{TLS}/")
        else value
        for name, value in environment.items()
    }


def accepted(
    service: str, environment: Mapping[str, str], tls: Path, monkeypatch: pytest.MonkeyPatch
) -> ServiceSettings:
    """Return what the service makes of an environment.

    Fails where it does not accept it, or where a variable is none of its settings.
    """
    kind = SETTINGS[service]
    ours = {name for name in environment if name.startswith(PREFIX)}
    assert ours <= known_names(kind), f"{service} has no setting {ours - known_names(kind)}"
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in here(environment, tls).items():
        monkeypatch.setenv(name, value)
    return kind()
