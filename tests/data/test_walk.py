"""jaxvision.data.walk: which files of a folder are images."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from jaxvision.data.walk import image_endings, walk_images


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def listed(root):
    """Returns the files of a walk, and the number of ignored entries of each kind."""
    walk = walk_images(root)
    return list(walk.files), {kind: found.count for kind, found in walk.ignored.items()}


def test_images_are_sorted_and_their_endings_count_in_any_case(tmp_path):
    names = [
        "b/z.JPG",
        "b/a.jfif",
        "b/c.JP2",
        "b/d.avif",
        "b/e.Bmp",
        "b/f.tiff",
        "b/deep/er/x.WEBP",
        "top.png",
        "a/1.gif",
    ]
    write(tmp_path, *names)
    files, ignored = listed(tmp_path)
    # A folder's files come before those of its subfolders.
    assert files == [
        "top.png", "a/1.gif", "b/a.jfif", "b/c.JP2", "b/d.avif", "b/e.Bmp", "b/f.tiff", "b/z.JPG", "b/deep/er/x.WEBP"
    ]  # fmt: skip
    assert not ignored


def test_pillow_decodes_every_ending_that_counts(tmp_path):
    for ending in sorted(image_endings()):
        kind = Image.registered_extensions()[ending]
        mode = "F" if ending == ".pfm" else "RGB"
        Image.new(mode, (8, 6)).save(tmp_path / f"x{ending}", kind)
        with Image.open(tmp_path / f"x{ending}") as image:
            image.load()
            assert image.size == (8, 6)
    assert not image_endings() & {".pdf", ".mpg", ".h5", ".eps", ".psd", ".svg", ".heic"}


def test_everything_ignored_is_counted(tmp_path):
    write(tmp_path, "a/x.jpg", "a/notes.txt", "a/more.TXT", "a/README", "a/1.heic", "a/2.HEIC", "a/x.cr2", "a/x.mov")
    write(tmp_path, "a/.DS_Store", "a/._x.jpg", "a/.thumbs/y.jpg", "a/@eaDir/x.jpg/SYNO_M.jpg", "__MACOSX/a/z.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    files, ignored = listed(tmp_path)
    assert files == ["a/x.jpg"]
    assert ignored == {
        ".txt": 2,
        "no file name ending": 1,
        "HEIC": 2,
        "raw": 1,
        "video": 1,
        "hidden": 5,
        "not a file": 1,
        "broken link": 1,
    }


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path):
    write(tmp_path, "cat.jpg/1.jpg", "cat.jpg/2.jpg")
    assert listed(tmp_path) == (["cat.jpg/1.jpg", "cat.jpg/2.jpg"], {})


def test_links_are_followed_once(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    write(root, "a/x.jpg", "z/y.jpg", ".cache/blob")
    write(store, "deep/1.jpg", "2.jpg")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "a" / "up").symlink_to("../..")
    (root / "0").symlink_to(store)  # listed before the other links to it
    (root / "b").symlink_to("z")
    (root / "c").symlink_to(store)
    (root / "d").symlink_to(store / "deep")
    (store / "back").symlink_to(root)
    (store / "deep" / "loop").symlink_to(store)
    write(root, "e/keep.txt")
    (root / "e" / "copy.jpg").symlink_to("../z/y.jpg")
    (root / "e" / "hub.jpg").symlink_to("../.cache/blob")  # as in the hub's cache
    (root / "e" / "hub2.jpg").symlink_to("../.cache/blob")
    (root / "e" / "once.jpg").symlink_to(store / "2.jpg")
    files, ignored = listed(root)
    assert files == ["0/2.jpg", "0/deep/1.jpg", "a/x.jpg", "e/hub.jpg", "z/y.jpg"]
    assert ignored == {"link to a parent folder": 2, "listed already": 8, "hidden": 1, ".txt": 1}


def test_an_unreadable_folder_is_reported(tmp_path):
    write(tmp_path, "a/x.jpg")
    here = os.getcwd()
    try:  # A folder whose path is longer than the system accepts. The tests may run as root, who reads anything else.
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.chdir(here)
    files, ignored = listed(tmp_path)
    assert files == ["a/x.jpg"]
    assert ignored == {"unreadable folder (File name too long)": 1}


def test_a_missing_folder_is_unreadable(tmp_path):
    assert listed(tmp_path / "gone") == ([], {"unreadable folder (No such file or directory)": 1})


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    name = os.fsdecode(b"caf\xe9/\xff.jpg")
    (tmp_path / name).write_bytes(b"")
    assert listed(tmp_path) == ([name], {})


@pytest.mark.parametrize("change", ["add", "remove"])
def test_the_time_of_a_folder_changes_with_its_entries(tmp_path, change):
    write(tmp_path, "a/x.jpg", "a/y.jpg", "b/deep/z.jpg")
    first = walk_images(tmp_path)
    assert len(list(first.files)) == 3
    assert set(first.folders) == {"", "a", "b", "b/deep"}
    again = walk_images(tmp_path)
    list(again.files)
    assert again.folders == first.folders
    if change == "add":
        write(tmp_path, "a/new.jpg")
    else:
        (tmp_path / "a" / "x.jpg").unlink()
    changed = walk_images(tmp_path)
    list(changed.files)
    assert {folder for folder, time in changed.folders.items() if time != first.folders[folder]} == {"a"}


def test_a_walk_makes_no_system_call_for_a_file(tmp_path, monkeypatch):
    write(tmp_path, *[f"{c}/{i}.jpg" for c in "ab" for i in range(50)])
    stat, calls = os.stat, []
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or stat(*a, **k))
    assert len(list(walk_images(tmp_path).files)) == 100
    assert len(calls) == 3  # one for each folder
