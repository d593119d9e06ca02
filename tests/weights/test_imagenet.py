"""Names and identifiers of ImageNet's classes."""

from __future__ import annotations

import pytest
from support.reference import import_timm

from jaxvision.weights import imagenet


@pytest.mark.timm
def test_class_names_match_wordnet():
    import_timm()
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    assert list(imagenet.synsets()) == [info.index_to_label_name(i) for i in range(1000)]
    for i, name in enumerate(imagenet.class_names()):
        assert info.index_to_description(i).startswith(name.split(" (")[0])


def test_class_names():
    names = imagenet.class_names()
    assert len(names) == len(set(names)) == len(set(imagenet.synsets())) == 1000
    assert names[281] == "tabby"
    assert imagenet.synsets()[281] == "n02123045"
    assert imagenet.class_names(2) == ("class 0", "class 1")
    assert imagenet.class_names(0) == ()
