"""The image files below a folder, in one order for training and for predictions."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from PIL import Image

# Formats of photographs and drawings. Pillow opens more, such as fonts, scientific data and documents.
_FORMATS = {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"}

# Kinds of files that may hold images and are not read: what to do with them, and their endings.
_UNSUPPORTED = {
    "HEIC": ("not supported, convert them with ImageMagick: mogrify -format jpg {pattern}", (".heic", ".heif", ".hif")),
    "raw": (
        "not supported, convert them, for example with darktable-cli",
        (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    ),
    "video": (
        "not supported, extract images with: ffmpeg -i VIDEO -vf fps=1 %04d.jpg",
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts"),
    ),
    "JPEG XL": ("not supported, convert them with: djxl IN.jxl OUT.png", (".jxl",)),
    "AVIF": ("this Pillow cannot read them: pip install -U pillow", (".avif", ".avifs")),
    "document": ("not supported, export them as PNG", (".psd", ".svg", ".pdf", ".eps", ".ai", ".xcf")),
    "archive": ("not supported, unpack them", (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz")),
}
#: Those of them that are photographs for certain.
PHOTOS = ("HEIC", "raw", "JPEG XL", "AVIF")
_KIND = {ending: kind for kind, (_, endings) in _UNSUPPORTED.items() for ending in endings}

# Folders that operating systems and storage devices create, some with thumbnails of the images next to them.
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


@dataclass
class Ignored:
    """Entries of one kind that a walk ignored.

    Attributes:
      count: number of them.
      example: path of the first one, relative to the folder of the walk.
    """

    count: int
    example: str


@dataclass
class Walk:
    """A walk through a folder, from `walk_images`.

    Attributes:
      files: yields the path of each image file, relative to the folder. Other attributes are complete when it ends.
      ignored: what was ignored, by kind: an ending such as ``".txt"``, or words such as ``"HEIC"``, ``"hidden"``,
        ``"broken link"``, ``"listed already"`` or ``"unreadable folder (Permission denied)"``; see `ignored_text`.
      folders: the folders that were read -> their `folder_times`. Paths are relative; that of the root is empty.
      links: links to folders that were followed -> the real paths of their targets.
      linked_files: `path_digest` of the real path of each image that is listed through a link to it.
      linked_folders: `path_digest` of the real paths of the folders that these images are in, if a walk through such a
        folder would list them.
    """

    files: Iterator[str]
    ignored: dict[str, Ignored] = field(default_factory=dict)
    folders: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    linked_files: array[int] = field(default_factory=lambda: array("Q"))
    linked_folders: set[int] = field(default_factory=set)


def path_digest(path: str) -> int:
    """Returns 64 bits that stand for a path, which take less memory than the paths of a million links."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def folder_times(status: os.stat_result) -> tuple[int, int]:
    """Returns the times in ns that change if an entry of a folder is added, removed or renamed: st_mtime and st_ctime.

    Tools that copy folders (``rsync -a``, ``cp -a``, ``tar``) restore st_mtime. Only the system sets st_ctime, which
    also changes with the permissions. On Windows st_ctime is the creation time and has no effect here.
    """
    return status.st_mtime_ns, status.st_ctime_ns


@functools.cache
def image_endings() -> frozenset[str]:
    """Returns the endings of the image files that the installed Pillow reads, in lower case.

    >>> {".jpg", ".jfif", ".png", ".bmp", ".tiff", ".jp2"} <= image_endings(), ".txt" in image_endings()
    (True, False)
    """
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in _FORMATS)


def ending_of(name: str) -> str:
    """Returns the ending of a file name in lower case, with its dot.

    >>> ending_of("photo.JPG"), ending_of("LICENSE")
    ('.jpg', '')
    """
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def is_hidden(name: str) -> bool:
    """Returns whether a walk skips a file or folder because of its name: ``.cache``, ``._photo.jpg``, ``@eaDir``."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def walk_images(root: str | os.PathLike[str]) -> Walk:
    """Walks through a folder and everything below it, and returns its image files.

    Each folder's own files come before those of its subfolders, both sorted by name. Only the ending of a name counts;
    a folder is a folder even if it is called ``cat.jpg``. Links are followed, but every image is listed once: a link to
    a folder or an image that the walk lists anyway is ignored, and so is a link to a folder that contains this one.

    Takes one system call for each folder and none for each file, except for links.

    Args:
      root: the folder.

    Example:
      >>> import pathlib, tempfile
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> (root / "cat").mkdir()
      >>> for name in ("b.jpg", "a.PNG", "notes.txt"):
      ...     _ = (root / "cat" / name).write_bytes(b"")
      >>> walk = walk_images(root)
      >>> list(walk.files), walk.ignored
      (['cat/a.PNG', 'cat/b.jpg'], {'.txt': Ignored(count=1, example='cat/notes.txt')})
    """
    walk = Walk(files=iter(()))
    walk.files = _Walker(os.fspath(root), walk).files()
    return walk


class _Walker:
    """The state of a walk: what it has listed, to ignore links to it."""

    def __init__(self, root: str, walk: Walk):
        self.root = root
        self.walk = walk
        self.endings = image_endings()
        self.real_root = os.path.realpath(root)
        self.real_folders = {self.real_root}  # that are walked: the root and the targets of links
        self.seen: set[tuple[int, int]] = set()  # (device, inode) of folders, and of the targets of links

    def files(self) -> Iterator[str]:
        pending = [""]
        while pending:
            folder = pending.pop()
            files, folders = self._read(folder)
            yield from (os.path.join(folder, name) for name in files)
            pending += [os.path.join(folder, name) for name in reversed(folders)]

    def _read(self, folder: str) -> tuple[list[str], list[str]]:
        """Returns the names of the images and of the subfolders in a folder, sorted."""
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        path = os.path.join(self.root, folder)
        try:
            status = os.stat(path)
            if self._was_seen(status):
                self._ignore("listed already", folder)
                return [], []
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if is_hidden(name):
                        self._ignore("hidden", os.path.join(folder, name))
                    elif entry.is_symlink():
                        links.append(name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif entry.is_file(follow_symlinks=False):
                        self._add_file(folder, name, files)
                    else:
                        self._ignore("not a file", os.path.join(folder, name))
        except OSError as e:
            self._ignore(f"unreadable folder ({e.strerror or e})", folder or ".")
            return [], []
        for name in sorted(links):  # in an order, because the first of several links to an image counts
            self._read_link(folder, name, files, folders)
        self.walk.folders[folder] = folder_times(status)
        return sorted(files), sorted(folders)

    def _add_file(self, folder: str, name: str, files: list[str]) -> None:
        ending = ending_of(name)
        if ending in self.endings:
            files.append(name)
        else:
            self._ignore(_KIND.get(ending, ending) or "no file name ending", os.path.join(folder, name))

    def _read_link(self, folder: str, name: str, files: list[str], folders: list[str]) -> None:
        link = os.path.join(folder, name)
        target = os.path.realpath(os.path.join(self.root, link))
        try:
            status = os.stat(target)
        except OSError:
            self._ignore("broken link", link)
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder and _contains(target, self.real_root):
            self._ignore("link to a parent folder", link)
        elif self._is_listed(target, is_folder):
            self._ignore("listed already", link)
        elif is_folder:
            self.real_folders.add(target)
            self.walk.links[link] = target
            folders.append(name)
        elif not stat.S_ISREG(status.st_mode):
            self._ignore("not a file", link)
        elif ending_of(name) not in self.endings:
            self._add_file(folder, name, files)
        elif self._was_seen(status):
            self._ignore("listed already", link)
        else:
            self._add_file(folder, name, files)
            self._record_linked_file(target)

    def _record_linked_file(self, target: str) -> None:
        self.walk.linked_files.append(path_digest(target))
        outer, name = os.path.split(target)
        if ending_of(name) in self.endings and not is_hidden(name):
            self.walk.linked_folders.add(path_digest(outer))

    def _is_listed(self, target: str, is_folder: bool) -> bool:
        """Returns whether the walk also reaches the target of a link without this link."""
        folder, names = target, []
        while folder != os.path.dirname(folder):
            folder, name = os.path.split(folder)
            names.append(name)
            if folder in self.real_folders:
                return not any(map(is_hidden, names)) and (is_folder or ending_of(names[0]) in self.endings)
        return False

    def _was_seen(self, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            return True
        self.seen.add(key)
        return False

    def _ignore(self, kind: str, path: str) -> None:
        known = self.walk.ignored.setdefault(kind, Ignored(0, path))
        known.count += 1
        known.example = min(known.example, path)  # folders are read in any order


def _contains(folder: str, path: str) -> bool:
    return f"{path}{os.sep}".startswith(os.path.join(folder, ""))


def advice(name: str) -> str:
    """Returns what to do about a file that is not supported, as a sentence, or an empty text.

    >>> advice("IMG_1.HEIC"), advice("photo.jpg")
    ('HEIC: not supported, convert them with ImageMagick: mogrify -format jpg *.HEIC', '')
    """
    kind = _KIND.get(ending_of(name)) if ending_of(name) not in image_endings() else None
    return f"{kind}: {_fix(kind, name)}" if kind else ""


def _fix(kind: str, example: str) -> str:
    """Returns what to do about files of an unsupported kind; the commands are for the folder of the example."""
    folder, name = os.path.split(example)
    return _UNSUPPORTED[kind][0].format(pattern=os.path.join(folder, f"*{os.path.splitext(name)[1]}"))


def ignored_text(ignored: Mapping[str, Ignored]) -> str:
    """Returns what a walk ignored in one line, and what to do about files that may hold images.

    >>> ignored_text({".txt": Ignored(1, "a.txt"), "JPEG XL": Ignored(1200, "cat/x.jxl")})
    'JPEG XL: 1,200 (such as cat/x.jxl; not supported, convert them with: djxl IN.jxl OUT.png), .txt: 1 (a.txt)'
    """
    parts = []
    for kind, found in sorted(ignored.items(), key=lambda row: (-row[1].count, row[0])):
        advice = f"; {_fix(kind, found.example)}" if kind in _UNSUPPORTED else ""
        such_as = "such as " if found.count > 1 else ""
        parts.append(f"{kind}: {found.count:,} ({such_as}{found.example}{advice})")
    return ", ".join(parts)
