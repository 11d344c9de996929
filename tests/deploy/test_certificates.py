"""deploy/certificates.sh makes what the services listen with and what their clients trust.

Method: the script runs as it stands, where there is an openssl; the handshake is Python's own, in
memory, for every name that compose and Kubernetes use.
"""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.deploy.images import ROOT, SERVICES

SCRIPT = ROOT / "deploy" / "certificates.sh"
NAMESPACE = "wattvend"
ROUNDS_MAX = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which the script calls")
    directory = tmp_path_factory.mktemp("certificates")
    make(directory)
    return directory


def make(directory: Path) -> None:
    done = subprocess.run(
        ["sh", SCRIPT, directory], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def shake_hands(made: Path, authority: Path, name: str) -> None:
    """Raise ssl.SSLError where a client that trusts `authority` would not go on."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(made / "tls.crt", made / "tls.key")
    trusting = ssl.create_default_context(cafile=authority)
    trusting.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    ends = [
        trusting.wrap_bio(to_client, to_server, server_hostname=name),
        serving.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(ROUNDS_MAX):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not ends:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("service", SERVICES)
def test_the_certificate_is_for_every_name_that_a_service_is_called_by(
    service: str, made: Path
) -> None:
    for name in (service, f"{service}.{NAMESPACE}.svc", "localhost"):
        shake_hands(made, made / "ca.crt", name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(made, made / "ca.crt", f"{service}.elsewhere.svc")


def test_who_trusts_another_authority_does_not_trust_it(made: Path, tls: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(made, tls / "ca.crt", "metering")


def test_only_its_owner_can_read_the_key_and_the_authoritys_is_gone(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    assert (made / "tls.key").stat().st_mode & 0o077 == 0
    for name in ("ca.crt", "tls.crt"):
        assert (made / name).stat().st_mode & 0o777 == 0o644


def test_made_again_it_stays_while_it_is_valid(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    make(made)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
