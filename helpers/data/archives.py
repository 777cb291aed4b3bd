"""Archives are unpacked once: whole or not at all, and never anywhere but into the folder that is theirs."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from helpers import progress_file, resolve_path

LEAST_LIMIT = 2**30
"""Bytes that any archive may unpack to."""

MOST_RATIO = 50
"""A larger archive may unpack to this many times its own size. Photos hardly shrink when packed: 1.0 is usual."""

SPARED = 2**30
"""Bytes of the disk that unpacking leaves free."""

MOST_MEMBERS = 2_000_000

MOST_FOLDERS = 100
"""How deep a file may lie."""

_CHUNK = 2**14  # small: zipfile expands what bz2 and lzma made of it at once, 20,000 times as much at worst
_LONGEST_READ = 2**20  # tarfile reads a header at once, whatever its size
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class _Member(NamedTuple):
    name: str
    kind: str  # "file", "folder", "symbolic link" (its content is its target), "hard link" (likewise), or "special"
    size: int  # bytes, as the archive says
    open: Callable[[], BinaryIO]


def is_archive(path: Path) -> bool:
    """Returns whether the file is a zip or a tar (as it is, or in gz, bz2 or xz), whatever it is called.

    Raises:
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        return _is_tar(file) or zipfile.is_zipfile(file)


def unpack(archive: Path) -> Path:
    """Returns the folder that holds the archive's files, below `runs/.unpacked`; unpacked the first time only.

    The folder is named by the archive's content, so that another archive of the same name gets another one.
    It holds nothing but regular files and folders: a link to a file of the archive becomes a copy of it.

    Raises:
        ValueError: the archive is damaged, encrypted or empty; it would write outside of its folder, holds two
            entries of one path, a link to elsewhere, a device or the like; or it is larger unpacked than
            `MOST_RATIO` times its size, or than the disk has room for. Then nothing of it is kept.
        OSError: the archive cannot be read, or `runs/.unpacked` cannot be written.
    """
    store = resolve_path("runs/.unpacked")
    with open(archive, "rb") as file:
        stem = re.sub(r"(\.tar)?\.[^.]*$", "", archive.name, flags=re.IGNORECASE)
        stem = stem.encode("utf-8", "replace").decode()[:40]  # short and valid: it becomes the name of a folder
        folder = store / f"{stem}-{_hash_file(file, archive.name)[:16]}"
        if folder.exists():
            return folder
        store.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=store))
        try:
            partial.chmod(0o755)
            _unpack_file(file, partial, archive)
            partial.rename(folder)  # all or nothing: an interruption leaves no half set behind
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _hash_file(file: BinaryIO, name: str) -> str:
    digest = hashlib.sha256()
    with _progress(f"reading {name}", file) as bar:
        while chunk := file.read(2**20):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _progress(title: str, file: BinaryIO) -> tqdm:
    size = os.fstat(file.fileno()).st_size
    return tqdm(total=size, unit="B", unit_scale=True, desc=title, leave=False, file=progress_file(), delay=1)


def _unpack_file(file: BinaryIO, folder: Path, archive: Path) -> None:
    """Unpacks everything into the folder; whatever is wrong is a ValueError that names the archive and the member."""
    left = _Limit(os.fstat(file.fileno()).st_size, folder)
    links, place = [], "at its beginning"
    try:
        with _progress(f"unpacking {archive.name}", file) as bar:
            for number, member in enumerate(_members(file, left.size), start=1):
                place = repr(member.name)
                if number > MOST_MEMBERS:
                    raise ValueError(f"it has more than {MOST_MEMBERS:,} entries")
                links += _unpack_member(member, folder, left)
                bar.update(max(0, file.tell() - bar.n))
                place = f"after {member.name!r}"
        for name, target, source in links:  # at the end: a link may come before its file
            place = repr(name)
            if not source.is_file():
                raise ValueError("a link to what is no file in this archive")
            _write(source.open("rb"), target, left)
        if not any(names for _, _, names in os.walk(folder)):
            place = "as a whole"
            raise ValueError("it holds no file")
    except Exception as error:  # damaged archives make zipfile, tarfile and the decompressors raise many kinds
        raise ValueError(
            f"Expected an archive that can be unpacked safely, and whole. Received {archive}, {place}: "
            f"{_reason(error)}. Nothing of it was kept. Fetch it again, or unpack it yourself and name the folder."
        ) from error


def _unpack_member(member: _Member, folder: Path, left: "_Limit") -> list[tuple[str, Path, Path]]:
    """Writes a file or a folder; returns a link as (name, path, the path that it leads to), for later."""
    path = folder.joinpath(*_split_name(member.name))
    if member.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
    elif member.kind == "file":
        size = _write(member.open(), path, left)
        if size != member.size:
            raise ValueError(f"it holds {size:,} bytes, and should hold {member.size:,}")
    elif member.kind == "special":
        raise ValueError("neither a file nor a folder, but a device, a pipe or the like")
    else:
        target = os.fsdecode(member.open().read(4096))
        if member.kind == "symbolic link":
            target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), target))
        return [(member.name, path, folder.joinpath(*_split_name(target, "a link that")))]
    return []


def _split_name(name: str, what: str = "it") -> list[str]:
    """Returns the folders and the file that a member's name consists of.

    Raises:
        ValueError: it leads, or on some system would lead, out of the folder.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        encoding = " (its name is not UTF-8)" * bool(re.search(r"[\udc80-\udcff]", name))
        raise ValueError(
            f"{what} could lead out of the folder (an absolute path, a drive, a backslash, a NUL, or ..): "
            f"{name!r}{encoding}"
        )
    if len(parts) > MOST_FOLDERS:
        raise ValueError(f"it lies more than {MOST_FOLDERS} folders deep")
    return parts


class _Limit:
    """How many bytes may still be written: counted, since what an archive says of its sizes need not be true."""

    def __init__(self, archive_size: int, folder: Path):
        room = max(0, shutil.disk_usage(folder).free - SPARED)
        self.size = max(LEAST_LIMIT, MOST_RATIO * archive_size)
        self.reason = (
            f"unpacked, it is larger than {self.size:,} bytes, suspiciously large for an archive of its size"
        )
        if room < self.size:
            self.size = room
            self.reason = f"unpacked, it is larger than the {room:,} bytes that may be written to this disk"
        self.left = self.size

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(self.reason)


def _write(source: BinaryIO, path: Path, left: _Limit) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with source, open(path, "xb") as file:  # x: a second entry of this path is an error
        while chunk := source.read(_CHUNK):
            left.take(len(chunk))
            size += file.write(chunk)
    return size


def _reason(error: Exception) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "another entry has the same path, or is a file where this one needs a folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# ---- what is in an archive


def _members(file: BinaryIO, most: int) -> Iterator[_Member]:
    # tar first: a tar that ends in a zip would pass for that zip
    return _tar_members(file, most) if _is_tar(file) else _zip_members(file)


def _zip_members(file: BinaryIO) -> Iterator[_Member]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFLNK: "symbolic link"}
    with zipfile.ZipFile(file) as archive:
        # not `filename`, which ends at a NUL
        names = [info.orig_filename for info in archive.infolist()]
        windows = not any("/" in name for name in names)  # older .NET
        for info, name in zip(archive.infolist(), names, strict=True):
            if not info.flag_bits & 0x800:
                name = _decode_name(name)
            if windows:
                name = name.replace("\\", "/")
            mode = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0  # 3: Unix
            kind = "folder" if name.endswith("/") else kinds.get(mode, "special")
            yield _Member(name, kind, info.file_size, lambda info=info: archive.open(info))


def _decode_name(name: str) -> str:
    """Returns as UTF-8 a name that zipfile took for code page 437: macOS writes it without saying so.

    What is not UTF-8 may be in any encoding, and keeps its bytes, as in a tar.
    """
    return os.fsdecode(name.encode("cp437"))


def _tar_members(file: BinaryIO, most: int) -> Iterator[_Member]:
    kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"}
    stream = _Stream(file, most + 4096 * MOST_MEMBERS)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (info := archive.next()) is not None:
            if info.isreg():
                yield _Member(info.name, "file", info.size, lambda info=info: archive.extractfile(info))
            else:
                target = io.BytesIO(os.fsencode(info.linkname))
                yield _Member(info.name, kinds.get(info.type, "special"), 0, lambda target=target: target)
            archive.members.clear()  # it would keep a kilobyte of each
        stream.finish()


def _is_tar(file: BinaryIO) -> bool:
    try:
        tarfile.open(fileobj=_Stream(file, 2 * _LONGEST_READ), mode="r:")
        return True
    except Exception:  # the decompressors raise many kinds
        return False


class _Stream:
    """A tar's bytes, decompressed, from the first to the last: as many as are asked for, or an error.

    Left to itself, tarfile takes a damaged header, or a file that is cut off, for the archive's end, never looks
    at a compressed archive's checksum, reads a header of any size into memory, and follows negative sizes in
    circles.
    """

    def __init__(self, file: BinaryIO, most: int):
        file.seek(0)
        start = file.read(6)
        file.seek(0)
        self.file = next((opener(file) for magic, opener in _OPENERS.items() if start.startswith(magic)), file)
        self.position, self.most, self.last = 0, most, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError("a damaged header")
        self.last = self._read(size)
        if len(self.last) < size:
            raise EOFError("the archive is cut off")
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a damaged header")
        while position > self.position:
            self.read(min(position - self.position, _CHUNK))

    def finish(self) -> None:
        """Raises where the archive's end is none: a block that is no header, or more after it."""
        if self.last.strip(b"\0"):
            raise tarfile.ReadError("a damaged header")
        while rest := self._read(_CHUNK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows the archive's end")

    def _read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.position += len(data)
        if self.position > self.most:
            raise tarfile.ReadError("too much besides its files")
        return data
