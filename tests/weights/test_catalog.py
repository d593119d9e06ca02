"""The rows of the catalog against an installed timm, and looking them up."""

from __future__ import annotations

import pytest
from support.paths import ROOT
from support.reference import import_timm

from jaxvision.analysis.cost import model_info
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog, listing

MODULES = ["resnet", "vision_transformer", "deit", "vision_transformer_hybrid", "efficientnet", "resnetv2"]


@pytest.mark.timm
def test_every_tag_of_every_architecture_matches_timm():
    timm = import_timm()
    theirs, weights = [], 0
    for architecture in sorted(name for module in MODULES for name in timm.list_models(module=module)):
        cfgs = timm.models.get_arch_pretrained_cfgs(architecture)
        theirs.append(architecture)
        ours = {entry.name: entry for entry in catalog.entries(architecture)}
        # The default tag comes first, and it is listed even without weights.
        assert list(ours) == [n for i, (n, cfg) in enumerate(cfgs.items()) if cfg.has_weights or i == 0], architecture
        for name, entry in ours.items():
            cfg = cfgs[name]
            weights += entry.published
            assert entry.published == bool(cfg.has_weights), name
            assert (entry.hub_id, entry.num_classes, entry.license) == (cfg.hf_hub_id, cfg.num_classes, cfg.license)
            classifier = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier)
            assert (entry.classifier, entry.first_conv) == (classifier, cfg.first_conv)
            assert (entry.image_size, entry.crop_pct) == (cfg.input_size[-1], cfg.crop_pct)
            assert entry.test_image_size == (cfg.test_input_size or cfg.input_size)[-1]
            assert (entry.url, entry.filename) == (
                (None, "model.safetensors") if cfg.hf_hub_id or not cfg.url else (cfg.url, cfg.url.split("/")[-1])
            )
    assert theirs == sorted({entry.architecture for entry in catalog.entries()})
    assert len(theirs) >= 403
    assert weights >= 632


@pytest.mark.timm
def test_every_tag_trained_with_quick_gelu_is_marked():
    timm = import_timm()
    marked = {entry.name for entry in catalog.entries() if entry.activation}
    # timm lists the same repository twice, once under an architecture that has the activation.
    twins = {
        name.replace("_clip_quickgelu_", "_clip_"): cfg.hf_hub_id
        for architecture in timm.list_models("*_clip_quickgelu_*", module="vision_transformer")
        for name, cfg in timm.models.get_arch_pretrained_cfgs(architecture).items()
    }
    assert marked == twins.keys()
    assert len(marked) == 17
    for name in marked:
        entry = catalog.entries(name.split(".")[0])
        (entry,) = [e for e in entry if e.name == name]
        assert (entry.activation, entry.hub_id) == ("quick_gelu", twins[name])


@pytest.mark.timm
@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "vit_base_patch16_224.augreg_in21k",
        "tf_efficientnetv2_b0.in1k",
        "vit_small_r26_s32_384.augreg_in21k_ft_in1k",
        "deit_tiny_distilled_patch16_224.fb_in1k",
        "vit_base_patch16_clip_224.openai",
        "resnetv2_50x1_bit.goog_in21k",
    ],
)
def test_number_of_parameters_matches_timm(name):
    import torch

    with torch.device("meta"):
        model = import_timm().create_model(name)
    (entry,) = [entry for entry in catalog.entries(name.split(".")[0]) if entry.name == name]
    assert entry.params == sum(parameter.numel() for parameter in model.parameters())


def test_published_numbers_are_plausible():
    """Bounds on every row, which a number in the wrong column would exceed."""
    rows = catalog.entries()
    rated = [entry for entry in rows if entry.top1]
    assert len(rated) >= 379
    for entry in rated:
        assert 40 < entry.top1 < entry.top5 < 100, entry.name
        assert entry.num_classes == 1000, entry.name
    for entry in rows:
        assert 3e5 < entry.params < 3e9, entry.name
        assert all(1e7 < macs < 3e12 for macs in entry.macs.values()), entry.name
        # Only an architecture that jaxvision does not have may lack a number.
        if entry.macs or entry.architecture in registry.architectures():
            assert set(entry.macs) == {entry.image_size, entry.test_image_size}, entry.name


def test_the_generator_keeps_numbers_that_a_table_lacks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import make_catalog

    table = tmp_path / "results.csv"
    table.write_text("model,img_size,top1,top5,infer_img_size,infer_gmacs\nresnet50.a1_in1k,224,1,2,224,0.29\n")
    accuracies, costs = make_catalog.published(table), make_catalog.multiply_adds(table)
    assert accuracies["resnet50.a1_in1k"] == {"224": [1.0, 2.0], "288": [81.24, 95.112]}
    assert accuracies["resnet50.tv_in1k"] == {"224": [76.156, 92.866]}
    assert costs["resnet50"]["224"] == 290_000_000
    assert costs["resnet50"]["288"] == 6_800_000_000

    # Numbers that timm does not publish are counted again each time.
    assert costs["vit_base_patch14_reg1_tipsv2"] == {}
    make_catalog.count(costs, "test_vit", 1000, {160, 96})
    make_catalog.count(costs, "not_in_jaxvision", 1000, {224})
    assert costs["test_vit"]["160"] == 40_000_000
    assert costs["test_vit"]["96"] == model_info("test_vit", 96).total.multiply_adds_with_attention
    assert costs["not_in_jaxvision"] == {}


@pytest.mark.timm
def test_preprocessing_matches_timm():
    timm = import_timm()
    for name in listing.list_models(pretrained=True):
        entry, cfg = catalog.lookup(name), timm.get_pretrained_cfg(name).to_dict()
        for use_test_size, ours in ((False, entry.preprocess), (True, entry.test_preprocess)):
            theirs = timm.data.resolve_data_config({}, pretrained_cfg=cfg, use_test_size=use_test_size)
            assert theirs["input_size"] == (3, ours.image_size, ours.image_size), name
            got = (ours.crop_pct, ours.crop_mode, ours.interpolation, ours.mean, ours.std)
            assert got == tuple(theirs[k] for k in ("crop_pct", "crop_mode", "interpolation", "mean", "std")), name


@pytest.mark.timm
def test_the_default_tag_matches_timm():
    timm = import_timm()
    for architecture in registry.architectures():
        assert catalog.lookup(architecture).tag == (timm.get_pretrained_cfg(architecture).tag or "")


def test_every_architecture_has_an_entry():
    for architecture in registry.architectures():
        entry = catalog.lookup(architecture)
        assert entry.architecture == architecture
        assert catalog.lookup(entry.name) == entry


@pytest.mark.parametrize("spelling", ["timm/resnet50.a1_in1k", "hf_hub:timm/resnet50.a1_in1k", "hf-hub:timm/resnet50"])
def test_timms_prefixes_of_names(spelling):
    assert catalog.lookup(spelling) == catalog.lookup("resnet50.a1_in1k")


def test_some_rows():
    entry = catalog.lookup("resnet50")
    assert (entry.name, entry.hub_id) == ("resnet50.a1_in1k", "timm/resnet50.a1_in1k")
    assert (entry.preprocess.image_size, entry.preprocess.crop_pct, entry.preprocess.resize_to) == (224, 0.95, 235)
    assert (entry.test_preprocess.image_size, entry.test_preprocess.crop_pct) == (288, 1.0)
    assert entry.accuracy[224] == (80.382, 94.598)
    assert catalog.lookup("deit_small_distilled_patch16_224").classifier == ("head", "head_dist")
    assert catalog.lookup("vit_base_patch16_224").preprocess.mean == (0.5, 0.5, 0.5)
    # The mean belongs to the tag, not to the architecture.
    assert catalog.lookup("tf_efficientnet_b0.ap_in1k").preprocess.mean == (0.5, 0.5, 0.5)
    assert catalog.lookup("tf_efficientnet_b0.aa_in1k").preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50.a1_in1l", ["name: got 'a1_in1l', expected a weight tag of resnet50.", "Did you mean 'a1_in1k'"]),
        ("resnet50.", ["got '', expected a weight tag of resnet50"]),
        ("resnet_50", ["got 'resnet_50', expected a model name", "'resnet50'"]),
        ("resnet_50.a1_in1k", ["got 'resnet_50', expected a model name", "'resnet50'"]),
        ("vit_base_patch16", ["expected a model name", "'vit_base_patch16_224'"]),
        (
            "resnet50.augreg2_in21k_ft_in1k",
            ["a weight tag of resnet50", "_ft_in1k' is a tag of vit_base_patch16_224"],
        ),
        ("vit_base_patch16_224.a1_in1k", ["expected a weight tag of vit_base_patch16_224", "'a1_in1k' is a tag of "]),
        ("../../resnet50", ["got '../../resnet50', expected a name", "checkpoint_path"]),
        ("resnet50/../x", ["expected a name such as"]),
        ("resnet50\n.a1_in1k", ["expected a name such as"]),
        ("someone/resnet50.a1_in1k", ["expected a name such as"]),
        ("", ["got '', expected a model name"]),
        ("..", ["got '', expected a model name"]),
    ],
)
def test_errors_for_misspelled_names_suggest_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        catalog.lookup(name)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_license_notes():
    assert catalog.lookup("resnet50.a1_in1k").license_note is None
    note = catalog.lookup("resnet50.fb_swsl_ig1b_ft_in1k").license_note
    assert note == "the weights resnet50.fb_swsl_ig1b_ft_in1k are licensed cc-by-nc-4.0: non-commercial use only"


def test_rows_of_architectures_that_jaxvision_does_not_have_are_ignored():
    lacking = {entry.architecture for entry in catalog.entries()} - set(registry.architectures())
    assert lacking
    for architecture in lacking:
        with pytest.raises(UserError, match=f"got '{architecture}', expected a model name"):
            catalog.lookup(architecture)
    for pretrained in (False, True):
        names = listing.list_models(pretrained=pretrained)
        assert lacking.isdisjoint(name.split(".")[0] for name in names)
