"""Files from the web: tried again, gone on with, and in place only when they are whole."""

import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

from hierlab.data.manifest import check

TRIES, PATIENCE = 4, 60  # of a request: how often, and seconds each
_AGAIN = (429, 500, 502, 503, 504)  # answers after which another try makes sense
_MULTIHASH = {"1114": ("sha1", 20), "1220": ("sha256", 32), "1340": ("sha512", 64), "d50110": ("md5", 16)}


def download(
    address: str, folder: str | os.PathLike, size: int | None = None, hashed: tuple[str, str] | None = None
) -> Path:
    """Download a file into ``folder``, where its name begins with a hash of its address; kept if it is there already.

    An interrupted download goes on where it stopped. ``size`` (bytes) and ``hashed`` (algorithm and checksum) are what
    the publisher says; another file is removed and a ValueError. OSError, with the address, after several tries.
    """
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.-]", "_", name) or "file"
    path = Path(folder) / f"{sha256(address.encode()).hexdigest()[:12]}_{name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".download")
        _transfer(address, part)
        try:
            check_whole(part, size, hashed)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)
    return path


def check_whole(path: Path, size: int | None = None, hashed: tuple[str, str] | None = None) -> None:
    """ValueError where a file has not the size (bytes) or the checksum (algorithm, digits) that its publisher says."""
    if size is not None and path.stat().st_size != int(size):
        raise ValueError(f"{path} has {path.stat().st_size} bytes, its publisher says {size}: fetch it again")
    if hashed is not None:
        check(path, hashed[1], hashed[0])


def multihash(text: str) -> tuple[str, str] | None:
    """(algorithm, digits) of a multihash, which STAC's ``file:checksum`` is; None for kinds not known here."""
    text = text.lower()
    for prefix, (algorithm, length) in _MULTIHASH.items():
        if text.startswith(prefix) and len(text) == len(prefix) + 2 * length:
            return algorithm, text[len(prefix) :]
    return None


def answer_to(request: urllib.request.Request):
    """The open answer to a request; OSError, with the address, after several tries."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            failed = OSError(error.code, f"{request.full_url}: the server answers {error.code} {error.reason}")
            if error.code not in _AGAIN:
                raise failed from error
        except OSError as error:
            failed = OSError(f"{request.full_url}: cannot be reached ({error})")
    raise failed


def _transfer(address: str, part: Path) -> None:
    """Bring what is missing of a file; a server that cannot send parts sends it all."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            answer = answer_to(request)
        except OSError as error:
            if have and error.errno == 416:  # nothing is missing
                return
            raise
        with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
            start, rest = file.tell(), answer.headers.get("Content-Length")
            try:
                while chunk := answer.read(2**20):
                    file.write(chunk)
            except (OSError, HTTPException):
                continue
            if rest is None or file.tell() - start == int(rest):
                return
    raise OSError(f"{address}: the connection breaks again and again; {part} keeps what has come")
