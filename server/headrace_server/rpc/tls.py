"""TLS at the public port: files of certificates, which are read again when they change.

Connections that are open go on with what they began with; a pair of files that does not fit, as in the middle of a
change, is passed over until it does.  Callers need TLS 1.2 or newer: neither door speaks anything older.
"""

import asyncio
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

import grpc
import structlog

from headrace_server.errors import CannotStart
from headrace_server.settings import ServerSettings

SECONDS_BETWEEN_LOOKS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tls:
    """Where the certificates are, in PEM."""

    certificate: Path
    """Of the server, with those between it and its authority."""
    key: Path
    client_ca: Path | None
    """Whose certificates callers must show; None when they need none."""


def tls_of(settings: ServerSettings) -> Tls | None:
    """What the settings ask for.  Raises CannotStart when half is missing, unreadable, or does not fit together."""
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise CannotStart("TLS needs both server.tls_certificate and server.tls_key")
    tls = Tls(certificate, key, client_ca)
    try:
        _check(tls)
    except FileNotFoundError as error:
        raise CannotStart(f"TLS: one of {_names(tls)} does not exist") from error
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"TLS: {_names(tls)} cannot be used: {error.strerror or error}") from error
    return tls


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials for grpc.aio that follow the files."""
    files = _Files(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration,
        files.changed,  # type: ignore[arg-type]  # None means that nothing changed
        require_client_authentication=tls.client_ca is not None,
    )


class Staged:
    """Copies of the files for the native door, which looks at files itself but does not look whether they fit.

    The door is given the paths in `tls`, below a link that moves from one whole set to the next.
    """

    def __init__(self, tls: Tls, folder: Path) -> None:
        """Make the first copies in a new folder below `folder`, for this user alone."""
        self._files = _Files(tls)
        self._folder = Path(mkdtemp(prefix="tls-", dir=folder))
        self._link = self._folder / "current"
        self._number = 0
        self._stage()
        client_ca = self._link / "client_ca" if tls.client_ca is not None else None
        self.tls = Tls(self._link / "certificate", self._link / "key", client_ca)

    async def follow(self) -> NoReturn:
        """Copy the files whenever they have changed and fit together, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            if await asyncio.to_thread(self._files.changed) is not None:
                await asyncio.to_thread(self._stage)

    def remove(self) -> None:
        """Take the copies away."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stage(self) -> None:
        self._number += 1
        home = self._folder / str(self._number)
        home.mkdir(mode=0o700)
        for name, content in self._files.contents.items():
            (home / name).write_bytes(content)
        link = self._folder / "next"
        link.symlink_to(home.name)
        link.replace(self._link)
        shutil.rmtree(self._folder / str(self._number - 1), ignore_errors=True)


class _Files:
    """What the files held when they last fitted together."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamp = self._look()
        self.contents = self._read()

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The contents, as gRPC takes them."""
        pair = (self.contents["key"], self.contents["certificate"])
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=self.contents.get("client_ca"))

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, or None while the old one holds.  grpc.aio calls it for every handshake."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            _check(self._tls)
            self.contents = self._read()
        except OSError as error:  # ssl.SSLError is one too
            log.warning("tls.not_renewed", files=_names(self._tls), problem=str(error))
            return None
        log.info("tls.renewed", files=_names(self._tls))
        return self.configuration

    def _look(self) -> list[tuple[int, int]]:
        return [(found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in _paths(self._tls))]

    def _read(self) -> dict[str, bytes]:
        tls = self._tls
        files = {"certificate": tls.certificate, "key": tls.key, "client_ca": tls.client_ca}
        return {name: path.read_bytes() for name, path in files.items() if path is not None}


def _check(tls: Tls) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key that is locked would ask for its word at the terminal; no word opens it here.
    context.load_cert_chain(tls.certificate, tls.key, password="")
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)


def _paths(tls: Tls) -> list[Path]:
    return [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]


def _names(tls: Tls) -> str:
    return ", ".join(map(str, _paths(tls)))
