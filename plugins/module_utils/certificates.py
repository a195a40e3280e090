"""What this repository's plugins need to know of certificates: reading, describing, judging.

Runs on targets too, with the `cryptography` of Debian 12 (38) and of later systems.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID

if TYPE_CHECKING:
    from collections.abc import Sequence

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)
_SMALLEST_RSA = 2048  # below it nginx's OpenSSL refuses the key


class UnusableError(Exception):
    """A file that does not hold what it should."""


def load_chain(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file in their order; at least one."""
    try:
        chain = [x509.load_pem_x509_certificate(match) for match in _PEM.findall(pem)]
    except ValueError as error:
        raise UnusableError(f"holds a certificate that cannot be parsed ({error})") from error
    if not chain:
        raise UnusableError("holds no certificate in PEM form")
    return chain


def load_key(pem: bytes) -> Any:
    """The private key of a PEM file."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise UnusableError("is protected by a passphrase, which nginx cannot ask for") from error
    except Exception as error:  # OpenSSL's errors have no common base
        raise UnusableError("holds no private key in PEM form") from error


def fits(certificate: x509.Certificate, key: Any) -> bool:
    """Whether the key is the certificate's."""

    def public(holder: Any) -> bytes:
        encoded: bytes = holder.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded

    return public(certificate) == public(key)


def starts(certificate: x509.Certificate) -> datetime:
    moment: datetime | None = getattr(certificate, "not_valid_before_utc", None)
    return moment or certificate.not_valid_before.replace(tzinfo=UTC)


def ends(certificate: x509.Certificate) -> datetime:
    moment: datetime | None = getattr(certificate, "not_valid_after_utc", None)
    return moment or certificate.not_valid_after.replace(tzinfo=UTC)


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def names_of(certificate: x509.Certificate) -> list[str]:
    """DNS names and IP addresses that the certificate is for."""
    alternative = _extension(certificate, x509.SubjectAlternativeName)
    if alternative is None:
        return []
    dns = [name.lower() for name in alternative.get_values_for_type(x509.DNSName)]
    return dns + [str(a) for a in alternative.get_values_for_type(x509.IPAddress)]


def as_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def normal(name: str) -> str:
    """One spelling for each name."""
    address = as_address(name)
    return str(address) if address else name.lower()


def covers(certificate: x509.Certificate, name: str) -> bool:
    """Whether clients accept the certificate for a name; `*.` stands for one label."""
    offered = set(names_of(certificate))
    wanted = normal(name)
    if wanted in offered:
        return True
    _, dot, parent = wanted.partition(".")
    return bool(dot) and as_address(wanted) is None and f"*.{parent}" in offered


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed the certificate."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        if hasattr(certificate, "verify_directly_issued_by"):
            certificate.verify_directly_issued_by(issuer)
            return True
        key = issuer.public_key()
        algorithm = certificate.signature_hash_algorithm
        if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
            return True  # an older library: the names must do
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def permits(authority: x509.Certificate, name: str) -> bool:
    """Whether the authority's name constraints let it sign for a name."""
    constraints = _extension(authority, x509.NameConstraints)
    if constraints is None or not constraints.permitted_subtrees:
        return True
    address = as_address(name)
    host = name.lower().removeprefix("*.")
    for subtree in constraints.permitted_subtrees:
        if address is None and isinstance(subtree, x509.DNSName):
            base = subtree.value.lower()
            if host == base or host.endswith(f".{base}"):
                return True
        elif (
            address is not None
            and isinstance(subtree, x509.IPAddress)
            and address in ipaddress.ip_network(str(subtree.value))
        ):
            return True
    return False


def has_ocsp_responder(certificate: x509.Certificate) -> bool:
    access = _extension(certificate, x509.AuthorityInformationAccess)
    return access is not None and any(
        entry.access_method == AuthorityInformationAccessOID.OCSP for entry in access
    )


def describe(certificate: x509.Certificate) -> dict[str, Any]:
    """What an operator wants to know of a certificate."""
    end = ends(certificate)
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": names_of(certificate),
        "not_before": starts(certificate).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "not_after": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "days_left": (end - datetime.now(UTC)).days,
        "fingerprint": fingerprint,
        "ocsp_responder": has_ocsp_responder(certificate),
    }


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its private key."""

    chain: Sequence[x509.Certificate]
    key: Any

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    def problems(self, names: Sequence[str], now: datetime) -> list[str]:
        """Why clients would refuse this pair for these names, or nginx would not load it."""
        found = []
        if not fits(self.leaf, self.key):
            others = [c for c in self.chain[1:] if fits(c, self.key)]
            found.append(
                "the private key belongs to a later certificate of the file: the server's "
                "own certificate must come first"
                if others
                else "the private key does not belong to the certificate"
            )
        if isinstance(self.key, rsa.RSAPrivateKey) and self.key.key_size < _SMALLEST_RSA:
            found.append(f"the RSA key has {self.key.key_size} bits; {_SMALLEST_RSA} are the least")
        for position, certificate in enumerate(self.chain):
            which = f"certificate {position + 1} of the chain" if position else "the certificate"
            start, end = starts(certificate), ends(certificate)
            if end <= now:
                found.append(f"{which} expired on {end:%Y-%m-%d %H:%M} UTC")
            elif start > now + timedelta(minutes=5):
                found.append(f"{which} is not valid before {start:%Y-%m-%d %H:%M} UTC")
        for position, (certificate, issuer) in enumerate(
            zip(self.chain, self.chain[1:], strict=False), start=1
        ):
            if not issued_by(certificate, issuer):
                found.append(
                    f"certificate {position} of the file was not issued by the one after it "
                    f"({issuer.subject.rfc4514_string()}): put the server's certificate first, "
                    "then each one's issuer"
                )
        missing = [name for name in names if not covers(self.leaf, name)]
        if missing:
            offered = ", ".join(names_of(self.leaf)) or "no name at all"
            found.append(f"the certificate is for {offered}, not for {', '.join(missing)}")
        return found
