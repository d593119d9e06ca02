"""Weights from the hub's cache, and the errors of the hub."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
from support.weight_files import assert_loads, write

from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights import catalog, hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repository: str, architecture: str, *, revision: str = "main", name: str = "", **options) -> Path:
    """Puts a file into the hub's cache, in the layout of huggingface_hub."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return write(folder / "snapshots" / commit / (name or "model.safetensors"), architecture, **options)


def put_blob(cache: Path, repository: str) -> Path:
    """Puts a file into the hub's cache as huggingface_hub does: named by its digest, with a link in the snapshot."""
    path = put(cache, repository, "test_resnet")
    blob = cache / f"models--{repository.replace('/', '--')}" / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(os.path.relpath(blob, path.parent))
    return path


def test_a_cached_file_needs_no_network(cache):
    path = put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    assert hub.fetch(catalog.lookup("test_resnet")) == path
    assert hub.fetch("timm/test_resnet.r160_in1k") == path


def test_without_a_network_the_error_names_alternatives(cache):
    with pytest.raises(UserError) as error:
        hub.fetch(catalog.lookup("resnet18"))
    message = str(error.value)
    assert "\n" not in message
    for word in ("timm/resnet18.a1_in1k", "checkpoint_path=", "HF_HOME", "pretrained=False"):
        assert word in message


def test_a_home_of_the_hub_that_is_a_file(cache, monkeypatch):
    from huggingface_hub import constants

    cache.write_text("")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    with pytest.raises(UserError, match=r"cannot read the cache of the hub: Not a directory\. Set HF_HOME to a folder"):
        hub.fetch(catalog.lookup("resnet18"))


def test_a_restrictive_license_is_logged(cache, caplog):
    put(cache, "timm/resnet18.fb_swsl_ig1b_ft_in1k", "test_resnet")
    hub.fetch(catalog.lookup("resnet18.fb_swsl_ig1b_ft_in1k"))
    assert "cc-by-nc-4.0: non-commercial use only" in caplog.text


def test_a_revision_is_pinned_by_name_or_by_commit(cache):
    repository = "timm/test_resnet.r160_in1k"
    main, old = (put(cache, repository, "test_resnet", revision=revision) for revision in ("main", "v1.0"))
    entry = catalog.lookup("test_resnet")
    assert hub.fetch(entry) == hub.fetch(entry, revision="main") == main
    assert hub.fetch(entry, revision="v1.0") == hub.fetch(entry, revision=old.parent.name) == old != main
    with pytest.raises(UserError, match=r"cannot download .* at revision v2 from the hub"):
        hub.fetch(entry, revision="v2")


@pytest.mark.parametrize("revision", ["../../other", "/etc", "", "a b", "a\nb", "a/../../b", ".."])
def test_a_revision_must_not_be_a_path(cache, revision):
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    with pytest.raises(UserError, match="expected a branch, a tag or a commit") as error:
        hub.fetch(catalog.lookup("test_resnet"), revision=revision)
    assert "\n" not in str(error.value)


def test_create_model_takes_the_revision(cache):
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet", revision="v2", change=lambda x: x["fc.bias"].fill(0.5))
    model = create_model("test_resnet", pretrained=True, revision="v2")
    assert float(model.fc.bias[0]) == 0.5
    assert float(create_model("test_resnet", pretrained=True).fc.bias[0]) != 0.5
    for options in ({}, {"pretrained": True, "checkpoint_path": "x"}):
        with pytest.raises(UserError, match="revision: got it without weights from the hub"):
            create_model("test_resnet", revision="v2", **options)


def test_a_damaged_file_of_the_cache_is_an_error_that_names_it(cache):
    path = put_blob(cache, "timm/test_resnet.r160_in1k")
    entry, blob = catalog.lookup("test_resnet"), path.resolve()
    assert hub.fetch(entry) == path
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(UserError) as error:
        create_model("test_resnet", pretrained=True)
    assert str(error.value).startswith(
        f"{path} is damaged: got the sha256 {digest}, expected {blob.name}, which the hub"
    )
    assert f"Delete {blob} and run the command again to download it" in str(error.value)
    create_model("test_resnet", checkpoint_path=path)
    blob.unlink()  # as the message says; then the hub is asked again
    with pytest.raises(UserError, match=r"cannot download timm/test_resnet.r160_in1k/model.safetensors"):
        hub.fetch(entry)


def test_a_link_into_a_store_with_other_names_is_followed_once(cache, tmp_path):
    """huggingface_hub can share the files of several caches in a store that names them by another hash."""
    path = put_blob(cache, "timm/test_resnet.r160_in1k")
    blob = path.resolve()
    blob.rename(tmp_path / ("0" * 64))
    blob.symlink_to(tmp_path / ("0" * 64))
    assert hub.fetch(catalog.lookup("test_resnet")) == path


def test_a_repository_without_safetensors(cache):
    path = put(cache, "some/one", "test_resnet", name="pytorch_model.bin")
    assert hub.fetch("some/one") == path
    assert_loads(path)  # by content it is a safetensors file


def test_errors_of_the_hub(cache, monkeypatch):
    """Replaces the hub's client by one that raises the hub's exceptions, because tests have no network."""
    import huggingface_hub
    from huggingface_hub import errors

    requests = []

    def answer(error, *, but=()):
        def metadata(url, **options):
            requests.append(url.rsplit("/", 1)[-1])
            if requests[-1] not in but:
                raise error.__new__(error)  # their constructors differ between releases

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)

    for error, words in [
        (errors.RepositoryNotFoundError, "the hub has no repository 'a/b', or it is private"),
        (errors.RevisionNotFoundError, "has no revision 'v9'"),
        (
            errors.RemoteEntryNotFoundError,
            "the hub has no file a/b/model.safetensors at revision v9, and no pytorch_mod",
        ),
    ]:
        answer(error)
        with pytest.raises(UserError, match=re.escape(words)):
            hub.fetch("a/b", revision="v9")
    requests.clear()
    answer(errors.RemoteEntryNotFoundError, but=("pytorch_model.bin",))
    with pytest.raises(UserError, match="cannot download"):  # the download itself fails without a network
        hub.fetch("a/b")
    assert requests == ["model.safetensors", "pytorch_model.bin"]


def test_a_tag_without_weights_names_the_others(cache):
    with pytest.raises(
        UserError,
        match=r"no published weights for 'test_resnet.none'. The tags of test_resnet with weights are r160_in1k. Pass",
    ):
        hub.fetch(catalog.Entry(architecture="test_resnet", tag="none"))


def test_an_architecture_without_published_weights(cache):
    with pytest.raises(UserError, match="no published weights for 'mine'"):
        hub.fetch(catalog.Entry(architecture="mine"))


@pytest.mark.parametrize("name", ["a/b/c", "../etc", "a/../b", "/etc/passwd", "a\nb", "", "a/b\0", "a/" + "x" * 500])
def test_an_impossible_repository_name(cache, name):
    with pytest.raises(UserError, match="expected a repository on the hub") as error:
        hub.fetch(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_which_weights_are_cached(cache: Path) -> None:
    assert not hub.is_cached(catalog.lookup("test_resnet.r160_in1k"))
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    assert hub.is_cached(catalog.lookup("test_resnet.r160_in1k"))
    assert not hub.is_cached(catalog.lookup("test_vit.r160_in1k"))
