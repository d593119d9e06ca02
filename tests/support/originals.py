"""Tiny datasets in the layout in which their authors publish them, and a server that has them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.io import savemat

from jaxvision.data.prepare import ORIGINALS
from support.images import encode, scene

#: What a split should contain: its name -> a list of (key in TFDS, pixels or the bytes of a file, name of the class).
Expected = dict[str, list[tuple[str, np.ndarray | bytes, str]]]


def write_original(name: str, folder: Path) -> Expected:
    """Writes the files of a dataset, a key of `ORIGINALS`, and returns what it contains."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith(("imagenette", "imagewoof")):
        (file,) = ORIGINALS[name].files
        return _imagenette(folder / file.name, woof=name.startswith("imagewoof"))
    return WRITERS[name](folder)


def _tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _photograph(seed: int) -> bytes:
    return encode(scene(20 + seed % 5, 30, seed=seed), "JPEG")


def _cifar(folder: Path, *, coarse: bool) -> Expected:
    fine = [f"fine{i}" for i in range(100)] if coarse else [f"class{i}" for i in range(10)]
    prefix = "cifar-100-binary/" if coarse else "cifar-10-batches-bin/"
    names = {"train": ["train.bin"], "test": ["test.bin"]}
    if not coarse:
        names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    files, expected = {}, {}
    for split, members in names.items():
        rows = []
        for member in members:
            data = b""
            for _ in range(3):
                seed = len(rows) + 50 * (split == "test")
                image, label = scene(32, 32, seed=seed), seed % len(fine)
                data += bytes([label % 20, label] if coarse else [label]) + image.transpose(2, 0, 1).tobytes()
                rows.append((str(len(rows)), image, fine[label]))
            files[prefix + member] = data
        expected[split] = rows
    if coarse:
        files[f"{prefix}coarse_label_names.txt"] = "\n".join(f"coarse{i}" for i in range(20)).encode() + b"\n"
        files[f"{prefix}fine_label_names.txt"] = "\n".join(fine).encode() + b"\n"
    else:
        files[f"{prefix}batches.meta.txt"] = "\n".join(fine).encode() + b"\n\n"
    _tar(folder / f"cifar-{'100' if coarse else '10'}-binary.tar.gz", files)
    return expected


def _mnist(folder: Path, *, names: list[str]) -> Expected:
    expected = {}
    for split, prefix, count in [("train", "train", 7), ("test", "t10k", 4)]:
        images = [scene(28, 28, 1, seed=i + count) for i in range(count)]
        labels = [(3 * i) % 10 for i in range(count)]
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], ">u4").tobytes()
        pixels = header + b"".join(image.tobytes() for image in images)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        rows = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(labels)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(rows))
        expected[split] = [(str(i), images[i], names[labels[i]]) for i in range(count)]
    return expected


def _svhn(folder: Path) -> Expected:
    expected = {}
    for split, count in [("train", 6), ("test", 3), ("extra", 4)]:
        images = [scene(32, 32, seed=i + count) for i in range(count)]
        labels = np.array([[10 - i] for i in range(count)], np.uint8)  # 10 stands for the digit 0
        savemat(folder / f"{split}_32x32.mat", {"X": np.stack(images, -1), "y": labels})
        expected[split] = [(str(i), images[i], str((10 - i) % 10)) for i in range(count)]
    return expected


def _flowers(folder: Path) -> Expected:
    photographs = [_photograph(i) for i in range(9)]
    labels = np.array([[i % 3 + 1 for i in range(9)]], np.uint8)
    numbers = {"trnid": [3, 1, 9], "valid": [2, 7], "tstid": [4, 5, 6, 8]}
    _tar(folder / "102flowers.tgz", {f"jpg/image_{i + 1:05d}.jpg": data for i, data in enumerate(photographs)})
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {key: np.array([row], np.uint16) for key, row in numbers.items()})
    first_names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]  # from the authors' page
    return {
        split: [(f"image_{n:05d}.jpg", photographs[n - 1], first_names[labels[0, n - 1] - 1]) for n in numbers[key]]
        for split, key in {"train": "trnid", "validation": "valid", "test": "tstid"}.items()
    }


def _pets(folder: Path) -> Expected:
    lists = {
        "trainval": [("Abyssinian_100", 1, 1, 1), ("beagle_12", 5, 2, 4), ("yorkshire_terrier_3", 37, 2, 25)],
        "test": [("Abyssinian_201", 1, 1, 1), ("american_bulldog_203", 2, 2, 1)],
    }
    names = {1: "Abyssinian", 2: "american_bulldog", 5: "beagle", 37: "yorkshire_terrier"}
    images, notes, expected = {}, {}, {}
    for listed, rows in lists.items():
        notes[f"annotations/{listed}.txt"] = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        expected["train" if listed == "trainval" else "test"] = [
            (f"{name}.jpg", _photograph(len(images) + i), names[label]) for i, (name, label, _, _) in enumerate(rows)
        ]
        for name, *_ in rows:
            images[f"images/{name}.jpg"] = _photograph(len(images))
            notes[f"annotations/trimaps/{name}.png"] = encode(scene(8, 8, 1, seed=len(images))[..., 0])
            notes[f"annotations/trimaps/._{name}.png"] = b"of a Mac"
            if listed == "trainval":
                notes[f"annotations/xmls/{name}.xml"] = (
                    b"<annotation><size><width>30</width><height>20</height><depth>3</depth></size><object><bndbox>"
                    b"<xmin>3</xmin><ymin>5</ymin><xmax>15</xmax><ymax>10</ymax></bndbox></object></annotation>"
                )
    _tar(folder / "images.tar.gz", images, "w")  # the real one is compressed, too, but older copies are not
    _tar(folder / "annotations.tar.gz", notes)
    return expected


def _food(folder: Path) -> Expected:
    files, expected = {}, {}
    for split, listed, numbers in [("train", "train", [7, 11]), ("validation", "test", [2])]:
        names = {label: [f"{label}/{n}" for n in numbers] for label in ("apple_pie", "waffles")}
        files[f"food-101/meta/{listed}.json"] = json.dumps(names).encode()
        expected[split] = []
        for label, images in names.items():
            for name in images:
                files[f"food-101/images/{name}.jpg"] = _photograph(len(files))
                expected[split].append((name, files[f"food-101/images/{name}.jpg"], label))
    _tar(folder / "food-101.tar.gz", files)
    return expected


def _imagenette(path: Path, *, woof: bool) -> Expected:
    classes = ["n02115641", "n02086240"] if woof else ["n03888257", "n01440764"]
    root = path.name.removesuffix(".tgz")
    files: dict[str, bytes] = {f"{root}/noisy_labels.csv": b"path,label"}
    expected: Expected = {"train": [], "validation": []}
    for split, folder, numbers in [("train", "train", [4, 9, 1]), ("validation", "val", [2, 6])]:
        for label in classes:
            for n in numbers:
                name = f"{label}_{n}.JPEG"
                files[f"{root}/{folder}/{label}/{name}"] = _photograph(len(files))
                expected[split].append((name, files[f"{root}/{folder}/{label}/{name}"], label))
    _tar(path, files)
    return expected


def _imagenet(folder: Path) -> Expected:
    archives, expected = {}, {"train": [], "validation": []}
    for label in ("n01440764", "n15075141"):
        files = {f"{label}_{n}.JPEG": _photograph(10 * n + len(archives)) for n in (5, 3)}
        _tar(folder / "inside.tar", files, "w")
        archives[f"{label}.tar"] = (folder / "inside.tar").read_bytes()
        expected["train"] += [(name, data, label) for name, data in files.items()]
    (folder / "inside.tar").unlink()
    _tar(folder / "ILSVRC2012_img_train.tar", archives, "w")
    # The classes of the first three images, as in the development kit: sea snake, alp, Shetland sheepdog.
    labels = {1: "n01751748", 2: "n09193705", 3: "n02105855"}
    expected["validation"] = [(f"ILSVRC2012_val_{n:08d}.JPEG", _photograph(n), label) for n, label in labels.items()]
    _tar(folder / "ILSVRC2012_img_val.tar", {name: data for name, data, _ in reversed(expected["validation"])}, "w")
    return expected


_FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
WRITERS = {
    "cifar10": partial(_cifar, coarse=False),
    "cifar100": partial(_cifar, coarse=True),
    "mnist": partial(_mnist, names=[str(i) for i in range(10)]),
    "fashion_mnist": partial(_mnist, names=_FASHION),
    "svhn_cropped": _svhn,
    "oxford_flowers102": _flowers,
    "oxford_iiit_pet": _pets,
    "food101": _food,
    "imagenet2012": _imagenet,
}


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, also in ranges. Closes the connection early in the first `breaks` responses."""

    breaks = 0
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        Server.requests.append((self.path, wanted))
        if not path.is_file():
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = path.read_bytes()[start:]
        self.send_response((206 if body else 416) if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Server.breaks:
            Server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves a folder and yields its address."""
    Server.breaks, Server.requests = 0, []
    handler = partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def at(name: str, folder: Path, *mirrors: str, expected: Expected | None = None):
    """Returns the row of `ORIGINALS` for files in `folder`, which mirrors serve.

    Its numbers of images, if it has any, become those of `expected`, from `write_original`.
    """

    def of(file):
        data = (folder / file.name).read_bytes()
        digest = (hashlib.md5 if len(file.digest) == 32 else hashlib.sha256)(data).hexdigest()
        return file._replace(digest=digest, size=len(data), urls=tuple(mirror + file.name for mirror in mirrors))

    row = ORIGINALS[name]
    images = row.images and {split: len(rows) for split, rows in (expected or {}).items()}
    return row._replace(files=tuple(map(of, row.files)), images=images)
