"""jaxvision.weights.catalog: equal to what an installed timm says, and its manners."""

from __future__ import annotations

import fnmatch

import pytest
from reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog

MODULES = ["resnet", "vision_transformer", "deit", "efficientnet"]


@pytest.mark.timm
def test_every_tag_of_every_architecture_is_timms():
    timm = import_timm()
    for architecture in registry.architectures():
        theirs = {cfg.tag: cfg for cfg in timm.models.get_arch_pretrained_cfgs(architecture).values() if cfg.hf_hub_id}
        ours = {entry.tag: entry for entry in catalog.entries(architecture) if entry.hub_id}
        assert list(ours) == list(theirs), architecture
        for tag, cfg in theirs.items():
            entry = ours[tag]
            classifier = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier)
            assert (entry.hub_id, entry.num_classes, entry.license) == (cfg.hf_hub_id, cfg.num_classes, cfg.license)
            assert (entry.classifier, entry.first_conv) == (classifier, cfg.first_conv)


@pytest.mark.timm
def test_preprocessing_is_what_timm_resolves():
    timm = import_timm()
    for name in catalog.list_models(pretrained=True):
        entry, cfg = catalog.lookup(name), timm.get_pretrained_cfg(name).to_dict()
        for use_test_size, ours in ((False, entry.preprocess), (True, entry.test_preprocess)):
            theirs = timm.data.resolve_data_config({}, pretrained_cfg=cfg, use_test_size=use_test_size)
            assert theirs["input_size"] == (3, ours.image_size, ours.image_size), name
            got = (ours.crop_pct, ours.crop_mode, ours.interpolation, ours.mean, ours.std)
            assert got == tuple(theirs[k] for k in ("crop_pct", "crop_mode", "interpolation", "mean", "std")), name


@pytest.mark.timm
def test_the_default_tag_is_timms():
    timm = import_timm()
    for architecture in registry.architectures():
        assert catalog.lookup(architecture).tag == (timm.get_pretrained_cfg(architecture).tag or "")


@pytest.mark.timm
@pytest.mark.parametrize("pattern", ["*", "resnet*", "vit_*", "*.a1_in1k", "efficientnet_b?", "*384*", "nothing*"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_lists_are_timms(pattern, pretrained):
    known = set(registry.architectures())
    theirs = import_timm().list_models(pattern, module=MODULES, pretrained=pretrained)
    expected = [name for name in theirs if name.split(".")[0] in known]
    assert catalog.list_models(pattern, pretrained=pretrained) == expected


@pytest.mark.timm
def test_class_names_are_wordnets():
    import_timm()
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    assert list(catalog.synsets()) == [info.index_to_label_name(i) for i in range(1000)]
    for i, name in enumerate(catalog.class_names()):
        assert info.index_to_description(i).startswith(name.split(" (")[0])


def test_every_architecture_has_an_entry():
    for architecture in registry.architectures():
        entry = catalog.lookup(architecture)
        assert entry.architecture == architecture
        assert catalog.lookup(entry.name) == entry


def test_rows_by_hand():
    entry = catalog.lookup("resnet50")
    assert (entry.name, entry.hub_id) == ("resnet50.a1_in1k", "timm/resnet50.a1_in1k")
    assert (entry.preprocess.image_size, entry.preprocess.crop_pct, entry.preprocess.resize_to) == (224, 0.95, 235)
    assert (entry.test_preprocess.image_size, entry.test_preprocess.crop_pct) == (288, 1.0)
    assert entry.accuracy[224] == (80.382, 94.598)
    assert catalog.lookup("deit_small_distilled_patch16_224").classifier == ("head", "head_dist")
    assert catalog.lookup("vit_base_patch16_224").preprocess.mean == (0.5, 0.5, 0.5)
    # The same architecture, another mean: it is the tag's, not the architecture's.
    assert catalog.lookup("tf_efficientnet_b0.ap_in1k").preprocess.mean == (0.5, 0.5, 0.5)
    assert catalog.lookup("tf_efficientnet_b0.aa_in1k").preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50.a1_in1l", ["unknown weight tag of resnet50 'a1_in1l'", "did you mean 'a1_in1k'"]),
        ("resnet50.", ["unknown weight tag of resnet50 ''"]),
        ("resnet_50", ["unknown model 'resnet_50'", "'resnet50'"]),
        ("resnet_50.a1_in1k", ["unknown model 'resnet_50'", "'resnet50'"]),
        ("vit_base_patch16", ["unknown model", "'vit_base_patch16_224'"]),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        catalog.lookup(name)
    assert all(word in str(error.value) for word in words)


def test_an_architecture_of_ones_own_has_a_row_without_weights(monkeypatch):
    row = registry.variant("test_vit")
    monkeypatch.setitem(registry._VARIANTS, "mine", row)
    entry = catalog.lookup("mine")
    assert (entry.name, entry.hub_id, entry.license_note) == ("mine", None, None)
    assert entry.preprocess.image_size == 224


def test_lists():
    assert catalog.list_models("resnet*", family="vit") == []
    assert catalog.list_models("*patch32_384", family="vit") == [
        "vit_base_patch32_384",
        "vit_large_patch32_384",
        "vit_small_patch32_384",
    ]
    every = catalog.list_models(pretrained=True)
    assert len(every) == len(set(every)) > 100
    assert fnmatch.filter(every, "resnet50.*") == catalog.list_models("resnet50", pretrained=True)
    with pytest.raises(UserError, match="unknown family 'resnets'; did you mean 'resnet'"):
        catalog.list_models(family="resnets")


def test_class_names():
    names = catalog.class_names()
    assert len(names) == len(set(names)) == len(set(catalog.synsets())) == 1000
    assert names[281] == "tabby"
    assert catalog.synsets()[281] == "n02123045"
    assert catalog.class_names(2) == ("class 0", "class 1")
    assert catalog.class_names(0) == ()


def test_licences_that_need_a_word():
    assert catalog.lookup("resnet50.a1_in1k").license_note is None
    note = catalog.lookup("resnet50.fb_swsl_ig1b_ft_in1k").license_note
    assert note == "the weights resnet50.fb_swsl_ig1b_ft_in1k are licensed cc-by-nc-4.0: non-commercial use only"
