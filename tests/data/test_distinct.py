"""jaxvision.data.distinct: no image is in two splits of a folder through links."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxvision.data import manifest, open_source
from jaxvision.errors import UserError


@pytest.fixture(params=["walked", "mapped"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the splits train, val and test, and with images beside them. Their lists are saved if mapped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "mapped":
        monkeypatch.setattr(manifest, "SMALLEST", 1)
        monkeypatch.setattr(manifest, "SETTLED", -(10**10))
    root = tmp_path / "photos"
    for split in ("train", "val", "test", "pool"):
        for class_ in ("cat", "dog"):
            (root / split / class_).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (1, 1)).save(root / split / class_ / f"{i}.png")
    (root / "test" / "cat" / ".old").mkdir()
    shutil.copy(root / "pool" / "cat" / "0.png", root / "test" / "cat" / ".old" / "0.png")
    return root


def open_twice(root: Path) -> None:
    """Opens a folder by its walk and, if it was saved, by its manifest; both raise the same error."""
    with pytest.raises(UserError) as first:
        open_source("folder", data_dir=str(root))
    with pytest.raises(UserError) as second:
        open_source("folder", data_dir=str(root))
    assert str(first.value) == str(second.value)
    assert len([*root.parent.glob("cache/**/*.arrow")]) == (3 if manifest.SMALLEST == 1 else 0)
    raise second.value


@pytest.mark.parametrize(
    ("links", "message"),
    [
        # Test images were trained on.
        ({"train/cat/sub": "test/cat"}, r"/test/cat: got the same folder as \S+/train/cat/sub, expected other images"),
        ({"test/cat/all": "train/cat"}, r"/test/cat/all: got the same folder as \S+/train/cat, .* for test than for t"),
        ({"train/cat/a/b": "test"}, r"/test: got the same folder as \S+/train/cat/a/b, .*photos/test and set"),
        ({"train/cat/a": "pool", "val/dog/b": "pool/dog"}, r"/val/dog/b: got the same folder as \S+/train/cat/a/dog, "),
        ({"test/cat/9.png": "train/cat/0.png"}, r"/test: got links to images in \S+/train/cat, .* for test than for t"),
        ({"train/dog/9.png": "val/cat/0.png"}, r"/train: got links to images in \S+/val/cat, .*find \S+/train -type l"),
        (
            {
                "train/cat/8.png": "pool/cat/0.png",
                "train/cat/9.png": "pool/cat/1.png",
                "test/cat/x.png": "pool/cat/1.png",
            },
            r"/test: got links to 1 image to which \S+/train also has links, expected other images for test than",
        ),
        (
            {"train/cat/9.png": "pool/dog/0.png", "val/cat/all": "pool/dog"},
            r"/train: got links to images in \S+/cat/all",
        ),
    ],
)
def test_an_image_in_two_splits_is_refused(root: Path, links: dict[str, str], message: str) -> None:
    for link, target in links.items():
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(root / target)
    with pytest.raises(UserError, match=message):
        open_twice(root)


def test_other_links_are_followed(root: Path) -> None:
    """To images beside the splits, to images that the other split ignores, and within a split."""
    links = {
        "train/cat/all": "pool/cat",
        "train/cat/9.png": "pool/dog/0.png",
        "train/cat/old.png": "test/cat/.old/0.png",
        "test/cat/9.png": "pool/dog/1.png",
        "train/dog/again.png": "train/dog/1.png",
    }
    for link, target in links.items():
        (root / link).symlink_to(root / target)
    for _ in range(2):
        splits = open_source("folder", data_dir=str(root))
        assert [len(split) for split in splits if split is not None] == [4 + 4, 4, 5]
