"""jaxvision.data: the same pixels from memory and from workers, whatever the images are."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from PIL import Image
from support.images import encode, scene

from jaxvision.augment.preprocess import Preprocess
from jaxvision.data import ArraySource
from jaxvision.data.dataset import StoredDataset, StreamedDataset, open_dataset
from jaxvision.data.source import check
from jaxvision.errors import UserError


class Images:
    """A source of images as bytes or arrays, all of class 0 or 1."""

    name, classes, labels = "images", ("a", "b"), None

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 2}

    def where(self, index):
        return f"images[{index}]"


def batches(dataset, **options):
    return next(dataset.eval_batches(batch_size=4, preprocess=Preprocess(**options), workers=0))


def files_of_each_mode():
    """Returns a dataset whose first image is gray and whose later ones are colored, with and without a palette."""
    gray, color = scene(16, 16, channels=1)[..., 0], Image.fromarray(scene(16, 16))
    return [encode(gray), encode(color.quantize(16)), encode(color), encode(color.convert("LA"))]


def test_files_are_rgb_whatever_the_first_one_is():
    source = Images(files_of_each_mode())
    stored = open_dataset(source)
    streamed = open_dataset(source, memory_limit=0)
    assert isinstance(stored, StoredDataset)
    assert isinstance(streamed, StreamedDataset)
    assert stored.channels == streamed.channels == 3
    np.testing.assert_array_equal(
        batches(stored)["image"], batches(streamed, image_size=16, crop_pct=1.0, crop_mode="center")["image"]
    )


def test_a_gray_array_among_colored_ones_is_repeated():
    first, second, third = scene(16, 16, channels=1), scene(16, 16), scene(16, 18)
    for images in ([first, second, third], [second, third, first]):
        dataset = open_dataset(Images(images))
        assert dataset.channels == 3
        got = batches(dataset, image_size=16, crop_pct=1.0)["image"]
        gray = next(i for i, image in enumerate(images) if image is first)
        np.testing.assert_array_equal(got[gray], np.repeat(first, 3, -1))


def test_an_array_with_another_number_of_channels_is_named():
    images = [scene(16, 16)] * 40
    images[1] = scene(16, 18, channels=5)  # between the images that are looked at first
    dataset = open_dataset(Images(images), memory_limit=0)
    with pytest.raises(UserError, match=r"images\[1\]: got 5 channels, expected 3 as in other images"):
        batches(dataset, image_size=16)


@pytest.mark.parametrize("wrong", [scene(8, 8) / 255, scene(8, 8).astype(np.int64), scene(8, 8)[..., 0]])
def test_arrays_that_are_not_8_bit_images(wrong):
    """Floats in [0, 1] would turn black as uint8."""
    for limit in (2.0, 0.0):
        with pytest.raises(UserError, match=r"image: got .*, expected uint8 \[h, w, c\]"):
            open_dataset(Images([wrong] * 3), memory_limit=limit)
    with pytest.raises(UserError, match="uint8"):
        ArraySource(np.stack([wrong] * 3), np.arange(3) % 2, classes=["a", "b"], name="arrays")


@pytest.mark.parametrize("labels", [[0.0, 0.7, 1.0], [0, 1, 2**32 + 1]])
def test_labels_of_arrays_are_not_rounded(labels):
    """2**32 + 1 would be 1 as an int32."""
    with pytest.raises(UserError, match=r"expected whole numbers|got the label 4294967297, expected 0 to 1"):
        check(ArraySource(np.stack([scene(8, 8)] * 3), np.array(labels), classes=["a", "b"], name="arrays"), "train")


# --- failures of the machine, which are not damaged images


class Failing(Images):
    """A source that raises an error in place of its second image."""

    def __init__(self, error):
        super().__init__([encode(scene(16, 16 + i)) for i in range(6)])
        self.error = error

    def __getitem__(self, index):
        if index == 1:
            raise self.error
        return super().__getitem__(index)


class FailingTogether(Failing):
    """One that reads several images together."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def os_error(number):
    return OSError(number, os.strerror(number))


DISK = "Check the disk and the network, and run the same command to resume"
KEY = "Log in to the network disk or unlock the folder again, and run the same command to resume"
LINUX_ERRORS = {
    **dict.fromkeys(("EUCLEAN", "EBADMSG", "ENOMEDIUM", "ENOLINK", "ENOBUFS", "ENONET", "ECOMM", "ETIME"), DISK),
    **dict.fromkeys(("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"), KEY),
}


@pytest.mark.parametrize("source", [Failing, FailingTogether])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"got too little memory to read the image. Set data\.workers or data\.batch_size lower"),
        (os_error(errno.ENOMEM), r"Cannot allocate memory. Set data\.workers or data\.batch_size lower"),
        (os_error(errno.EMFILE), "Too many open files. Raise the limit with: ulimit -n"),
        (os_error(errno.ENOSPC), "No space left on device. Free space"),
        (os_error(errno.EIO), "Input/output error. Check the disk and the network, and run the same command to resume"),
        (os_error(errno.ESTALE), "Stale file handle. Check the disk and the network"),
        (os_error(errno.ECONNRESET), "Connection reset by peer. Check the disk and the network"),
        (os_error(errno.EAGAIN), "Resource temporarily unavailable. Check the disk and the network"),
        *((os_error(getattr(errno, name)), advice) for name, advice in LINUX_ERRORS.items() if hasattr(errno, name)),
    ],
)
def test_a_failure_of_the_machine_is_not_a_damaged_image(source, error, message):
    """The images would be skipped, and the run would train on what is left."""
    dataset = StreamedDataset(source(error), max_corrupt=10)
    for read in (
        lambda: batches(dataset, image_size=16),
        lambda: dataset.image(1),
        lambda: open_dataset(source(error)),
    ):
        with pytest.raises(UserError, match=rf"^images\[1\]: .*{message}"):
            read()
    assert not dataset.corrupt


@pytest.mark.parametrize("source", [Failing, FailingTogether])
@pytest.mark.parametrize("error", [os_error(errno.ENOENT), os_error(errno.EACCES), OSError("no such row")])
def test_an_image_that_cannot_be_read_is_skipped(source, error):
    lines = []
    dataset = StreamedDataset(source(error), max_corrupt=1, log=lines.append)
    assert batches(dataset, image_size=16)["mask"].tolist() == [True, False, True, True]
    assert lines == [f"skipped the damaged image images[1]: {error}"]


def test_too_little_memory_to_decode_is_named(monkeypatch):
    """Pillow's decoders raise MemoryError, which counted as a damaged image."""
    source = Images([encode(scene(16, 16 + i)) for i in range(6)])
    stored = Images([encode(scene(16, 16))] * 40)
    opened = []

    def fail(*_):
        raise MemoryError

    def fail_later(data):
        opened.append(data)
        return fail() if len(opened) > 20 else Image.new("RGB", (16, 16))

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", fail_later)  # after the images that are looked at first
        with pytest.raises(UserError, match=r"images\[\d+\]: got too little memory"):
            open_dataset(stored)
    monkeypatch.setattr(Image, "open", fail)
    dataset = StreamedDataset(source, max_corrupt=10)
    train = {"batch_size": 4, "image_size": 16, "seed": 0, "start_step": 0, "stop_step": 1, "workers": 0}
    for crop in (None, {"scale": (0.3, 1.0), "ratio": (0.8, 1.25), "interpolation": "bilinear"}):
        with pytest.raises(UserError, match=r"images\[\d\]: got too little memory"):
            next(dataset.train_batches(crop=crop, **train))
    with pytest.raises(UserError, match=r"images\[0\]: got too little memory"):
        batches(dataset, image_size=16)
