"""One file over HTTP or from a directory: whole, checked, resumed where it was cut off."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from io import BufferedReader
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from orchestrator.core.errors import UserError

#: Seconds to wait before each further attempt.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
#: The most seconds that one file waits altogether because servers wish to be asked later. Hugging
#: Face counts questions by windows of 5 minutes.
PATIENCE = 330.0
#: Seconds without a byte before a connection counts as broken: it is then taken up again where it
#: stopped, so a short time costs little.
TIMEOUT = httpx.Timeout(20)
CHUNK = 1 << 20
#: Of the header RateLimit: `"api";r=0;t=55`.
RATE_LIMIT = re.compile(r"\br\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})")
MOST_REDIRECTS = 20
#: The most bytes of a file whose size nobody told beforehand: more than any wheel has.
MOST = 16 << 30


class DownloadStopped(Exception):
    """The user pressed Ctrl-C: what is there stays, for the next time."""


class WrongHash(UserError):
    """The bytes are not the locked ones."""


class TooLong(WrongHash):
    """More bytes come than the file has."""


class Unavailable(UserError):
    """This source does not have the file, or not after several attempts. ``status``, ``headers``
    and ``host`` (with its port): of the answer, where there was one."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        status: int | None = None,
        answer: httpx.Response | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.headers: Mapping[str, str] = answer.headers if answer else {}
        self.host = answer.url.netloc.decode() if answer else ""


class Incomplete(Exception):
    """The connection ended before the file did."""


def client() -> httpx.Client:
    """One client for all files, so that connections are used again."""
    return httpx.Client(follow_redirects=True, timeout=TIMEOUT)


class Halt(threading.Event):
    """Set, it ends the downloads of all threads at once: those that wait for bytes, too."""

    def __init__(self) -> None:
        super().__init__()
        self._sockets: set[socket.socket] = set()

    def set(self) -> None:
        super().set()
        for each in tuple(self._sockets):
            with suppress(OSError):  # it has just ended by itself
                each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def reading(self, reply: httpx.Response) -> Iterator[None]:
        """The reply is read in the body."""
        its = reply.extensions["network_stream"].get_extra_info("socket")
        self._sockets.add(its)
        try:
            if self.is_set():
                raise DownloadStopped
            yield
        finally:
            self._sockets.discard(its)


@contextmanager
def threads(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, Halt]]:
    """Threads for downloads. Where the body is interrupted, or fails, they end at once."""
    stop = Halt()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool, stop
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Downloader:
    """Brings files. ``advance`` gets the bytes gained (negative where some were thrown away);
    setting ``stop`` ends all downloads soon; ``pauses`` are the seconds before further attempts;
    ``tell`` gets a line where a server wishes to be asked later."""

    web: httpx.Client
    advance: Callable[[int], None] = lambda _: None
    stop: Halt = field(default_factory=Halt)
    pauses: Sequence[float] = PAUSES
    tell: Callable[[str], None] = lambda _: None

    def fetch(
        self,
        url: str,
        target: Path,
        size: int | None,
        expected: str,
        hashed: Callable[[Path], str] | None = None,
        opened: Callable[[], BufferedReader] | None = None,
    ) -> None:
        """Bring ``url`` to ``target``, which then has exactly this hash: sha256, or ``hashed``'s.
        ``opened`` gives the bytes in place of ``url``, which then only names them.

        A partial download is kept as TARGET.part; the next attempt, or the next run, asks for the
        rest (with ``size`` None: for the whole file, since completeness could not be checked).
        It ends with the first byte that is more than ``size``, or than MOST. Raises WrongHash
        (nothing is kept then), Unavailable, Stopped, or UserError where the disk is full.
        """
        part = _part(target)
        self.advance(_size(part))
        patience = PATIENCE
        for pause in (*self.pauses, None):
            later = 0.0
            try:
                with disk_errors(part):
                    self._attempt(url, part, size, opened)
                break
            except TooLong:
                self.advance(-_size(part))
                part.unlink()
                raise
            except httpx.HTTPStatusError as error:
                answer = error.response
                code, later = answer.status_code, wished(answer.headers)
                if pause is None or (code < 500 and code != 429) or later > patience:
                    self.advance(-_size(part))
                    said = f"{url}: HTTP {code} {answer.reason_phrase}"
                    raise Unavailable(said, status=code, answer=answer) from None
                if later:
                    patience -= later
                    self.tell(f"{target.name}: HTTP {code}: {waits(later)}")
            except (httpx.TransportError, Incomplete) as error:
                if pause is None:
                    self.advance(-_size(part))
                    raise Unavailable(f"{url}: {error or type(error).__name__}") from None
            if self.stop.wait(max(pause, later)):
                raise DownloadStopped
        self._accept(part, target, expected, (hashed or digest)(part), url)

    def _attempt(
        self, url: str, part: Path, size: int | None, opened: Callable[[], BufferedReader] | None
    ) -> None:
        """Append what is missing to ``part``."""
        part.touch()
        have = _size(part)
        if size is None and have:
            self.advance(-have)
            os.truncate(part, 0)
            have = 0
        if size is not None and have >= size:
            return
        if opened is None and (source := local_path(url)):
            opened = partial(_open, source)
        most = MOST if size is None else size
        if opened:
            self.advance(-have)
            with opened() as stream, part.open("wb") as out:
                self._copy(iter(lambda: stream.read(CHUNK), b""), out.write, most, url)
        else:
            self._from_web(url, part, have, most)
        if size is not None and _size(part) < size:
            raise Incomplete(f"the connection ended after {_size(part)} of {size} bytes")

    def _from_web(self, url: str, part: Path, have: int, most: int) -> None:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self.web.stream("GET", url, headers=headers) as reply, self.stop.reading(reply):
            reply.raise_for_status()
            again = have and reply.status_code != httpx.codes.PARTIAL_CONTENT
            if again:  # the server sends it all
                self.advance(-have)
                have = 0
            with part.open("wb" if again else "ab") as out:
                # As it comes: bytes gathered to a larger chunk are lost when the connection ends.
                self._copy(reply.iter_raw(), out.write, most - have, url)

    def _copy(
        self, chunks: Iterator[bytes], write: Callable[[bytes], int], most: int, url: str
    ) -> None:
        for chunk in at_most(most, chunks, url):
            write(chunk)
            self.advance(len(chunk))
            if self.stop.is_set():
                raise DownloadStopped

    def _accept(self, part: Path, target: Path, expected: str, seen: str, url: str) -> None:
        """Give a whole file its name if its hash is right, else remove it."""
        if seen == expected:
            part.replace(target)
            return
        self.advance(-_size(part))
        part.unlink()
        raise WrongHash(
            f"{target.name}: wrong content\n    expected {expected}\n"
            f"    got      {seen}\n    from     {url}"
        )


def at_most(most: int, chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    """The chunks, as long as they are ``most`` bytes together. Raises TooLong at the first more."""
    left = most
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TooLong(
                f"{url}: sends more bytes than the file has; stopped",
                "The source is wrong, or was changed after the file's size was recorded.",
            )
        yield chunk


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_at(web: httpx.Client, url: str) -> int | None:
    """How many bytes ``url`` has; None where nobody says so, or where it cannot be reached."""
    if path := local_path(url):
        return path.stat().st_size
    try:
        reply = web.head(url, headers={"Accept-Encoding": "identity"}).raise_for_status()
    except httpx.HTTPError:
        return None
    told = reply.headers.get("content-length", "")
    return int(told) if told.isdigit() else None


def existing_parent(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def local_path(url: str) -> Path | None:
    """The path of a file:// address; None for all others."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left' and its like, while ``path`` is written, into words for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left while writing {path}",
                "Free space and run it again: it resumes where it stopped.",
            ) from None
        raise UserError(f"{error.filename or path}: {error.strerror}") from None


def wished(headers: Mapping[str, str]) -> float:
    """Seconds that a busy server wants to be left alone; 0 where it does not say it.

    ``Retry-After`` is a number or a date. Hugging Face says it by ``RateLimit``: requests that
    remain, and seconds until there are more.
    """
    told = headers.get("retry-after", "").strip()
    if told.isdecimal():
        return float(told[:9])
    limit = RATE_LIMIT.search(headers.get("ratelimit", ""))
    if limit and int(limit[1]) == 0:
        return float(limit[2])
    with suppress(ValueError, TypeError):  # no date, or one of no time zone
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    return 0.0


def waits(seconds: float) -> str:
    """What to say while a server's wish is heeded."""
    return f"the server wishes to be asked again in {math.ceil(seconds)} s; waiting"


def _open(path: Path) -> BufferedReader:
    return path.open("rb")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def is_secure(url: str) -> bool:
    """Whether nobody on the way can change what comes: https, or this machine itself."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


@contextmanager
def secured(
    web: httpx.Client, url: str, headers: Mapping[str, str] | None = None
) -> Iterator[httpx.Response]:
    """The reply to a GET for something whose hash nobody knows.

    Raises UserError where the address, or one that it redirects to, is of plain http.
    """
    at = url
    for _ in range(MOST_REDIRECTS):
        if not is_secure(at):
            came = "" if at == url else f", by a redirect from {url}"
            raise UserError(
                f"{at}{came}: anybody on the way can change what plain http brings",
                "Use an address of https that stays with it, or give the file's sha256.",
            )
        with web.stream("GET", at, headers=headers, follow_redirects=False) as reply:
            if reply.next_request is None:
                yield reply
                return
            at = str(reply.next_request.url)
    raise Unavailable(f"{url}: more than {MOST_REDIRECTS} redirects")


def plain(web: httpx.Client, url: str, target: Path) -> None:
    """Bring a file whose hash nobody knows yet: only locking does this. MOST bytes at most."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    try:
        with disk_errors(part), secured(web, url) as reply, part.open("wb") as out:
            reply.raise_for_status()
            for chunk in at_most(MOST, reply.iter_raw(), url):
                out.write(chunk)
    except httpx.HTTPError as error:
        part.unlink(missing_ok=True)
        raise Unavailable(f"{url}: {error or type(error).__name__}") from None
    except UserError:
        part.unlink(missing_ok=True)
        raise
    part.replace(target)
