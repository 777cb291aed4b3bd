"""Archives are unpacked once: whole or not at all, and only into a folder of their own."""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from helpers import progress_file, resolve_path

LEAST_LIMIT = 2**30  # bytes that any archive may unpack to
MOST_RATIO = 50  # times its own size that a larger one may unpack to; photos: 1.0 times
SPARED = 2**30  # bytes of the disk that unpacking leaves free


def is_archive(path: Path) -> bool:
    """Returns whether the file is a zip or a tar (as it is, or in gz, bz2 or xz), whatever its name."""
    try:
        return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)
    except OSError:
        raise
    except Exception:  # the decompressors raise many kinds
        return False


def unpack(archive: Path) -> Path:
    """Returns the folder with the archive's files, below `runs/.unpacked`, named after its content; unpacked once.

    ValueError if it is damaged, encrypted or empty, has names or links that lead out of its folder, or is far too
    large when unpacked. Then nothing of it is kept.
    """
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    stem = re.sub(r"(\.tar)?\.[^.]*$", "", archive.name, flags=re.IGNORECASE)
    stem = stem.encode("utf-8", "replace").decode()[:40]  # short and valid, to be a folder's name
    folder = resolve_path("runs/.unpacked") / f"{stem}-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        _extract(archive, unfinished)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    place, left = "at its beginning", max(LEAST_LIMIT, MOST_RATIO * archive.stat().st_size)
    left = min(left, shutil.disk_usage(folder).free - SPARED)
    try:
        members = _tar_members(archive) if tarfile.is_tarfile(archive) else _zip_members(archive)
        bar = {"desc": f"unpacking {archive.name}", "unit": " files", "file": progress_file()}
        for name, size, extract in tqdm(members, leave=False, delay=1, **bar):
            place, left = repr(name), left - size
            if name.startswith("/") or ".." in name.split("/") or "\\" in name or re.match("[A-Za-z]:", name):
                raise ValueError("its name could lead out of the folder")
            if not name.endswith("/") and os.path.lexists(path := folder / name) and not path.is_dir():
                raise ValueError("another entry has the same path")
            if left < 0:
                raise ValueError("unpacked, the archive is suspiciously large, or too large for this disk")
            extract(folder)
            place = f"after {name!r}"
        if not any(names for _, _, names in os.walk(folder)):
            raise ValueError("it holds no file")
    except Exception as error:  # damaged archives make the standard library raise many kinds
        raise ValueError(
            f"Expected an archive that can be unpacked whole and safely. Received {archive}, {place}: "
            f"{str(error) or type(error).__name__}. Nothing of it was kept. Fetch it again, or unpack it yourself "
            f"and name the folder."
        ) from error


def _tar_members(path: Path) -> Iterator[tuple[str, int, Callable]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.size < 0:
                raise tarfile.ReadError("a damaged header")
            yield member.name, member.size, partial(archive.extract, member, filter="data")
        # tarfile takes a damaged header, or a file that is cut off, for the archive's end, and does not read on
        ended, rest = archive.fileobj.tell() - archive.offset, iter(partial(archive.fileobj.read, 2**20), b"")
        if ended != tarfile.BLOCKSIZE or any(chunk.strip(b"\0") for chunk in rest):
            raise tarfile.ReadError("damaged, or cut off")


def _zip_members(path: Path) -> Iterator[tuple[str, int, Callable]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        windows = not any("/" in member.filename for member in members)  # older .NET writes backslashes
        for member in members:
            if not member.flag_bits & 0x800:  # macOS writes UTF-8 without this flag, and zipfile reads code page 437
                member.filename = os.fsdecode(member.filename.encode("cp437"))
            if windows:
                member.filename = member.filename.replace("\\", "/")
            yield member.filename, member.file_size, partial(archive.extract, member)
