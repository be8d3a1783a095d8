"""The keys that Flower needs: of a node (ECDSA, P-384), and of a server's TLS. It runs in Flower's environment.

    python keys.py node KEY                 makes KEY and KEY.pub
    python keys.py server FOLDER NAME...    makes ca.crt, server.crt and server.key, for these names and addresses
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEARS = 10
_PRIVATE = 0o600


def make_node_key(path: Path) -> None:
    """A new key in OpenSSH's format, the one that Flower reads, and its public half as path.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    Path(f"{path}.pub").write_bytes(public + b"\n")
    _write_private(path, key, serialization.PrivateFormat.OpenSSH)


def make_server_keys(folder: Path, names: list[str]) -> None:
    """An authority, whose key is thrown away, and the server's certificate and key. names: of hosts, or addresses."""
    authority = ec.generate_private_key(ec.SECP384R1())
    issuer = _named("edgetune fleet authority")
    root = (_begun(issuer, issuer, authority)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
            .sign(authority, hashes.SHA384()))
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (_begun(_named("edgetune fleet server"), issuer, key)
                   .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
                   .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                   .add_extension(_usage(is_authority=False), critical=True)
                   .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                                  critical=False)
                   .sign(authority, hashes.SHA384()))
    _write_private(folder / "server.key", key, serialization.PrivateFormat.PKCS8)
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.crt").write_bytes(root.public_bytes(serialization.Encoding.PEM))


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365 * YEARS)))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority,
                         content_commitment=False, key_encipherment=False, data_encipherment=False,
                         key_agreement=False, encipher_only=False, decipher_only=False)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    raw = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "wb") as file:
        file.write(raw)


if __name__ == "__main__":
    kind, to, *given = sys.argv[1:]
    if kind == "node":
        make_node_key(Path(to))
    else:
        make_server_keys(Path(to), given)
