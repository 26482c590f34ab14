"""Certificates for the local names, of an authority that only the tests trust."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import trustme

from sightline.config import Tls

AUTHORITY = trustme.CA()


def issue(settings: Tls) -> None:
    """A new certificate. Each file is replaced whole, as renewal does it."""
    made = AUTHORITY.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    for path, text in ((settings.certificate, chain), (settings.key, made.private_key_pem.bytes())):
        Path(path + ".new").write_bytes(text)
        os.replace(path + ".new", path)


def issued(directory: Path) -> Tls:
    settings = Tls(certificate=str(directory / "cert.pem"), key=str(directory / "key.pem"))
    issue(settings)
    return settings


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context
