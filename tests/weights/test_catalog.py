"""jaxvision.weights.catalog: equal to what an installed timm says, and its manners."""

from __future__ import annotations

import fnmatch

import pytest
from flax import nnx
from support.paths import ROOT
from support.reference import import_timm

from jaxvision import classifier, create
from jaxvision.analysis.cost import model_info
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.mode import eval_view
from jaxvision.weights import catalog

MODULES = ["resnet", "vision_transformer", "deit", "vision_transformer_hybrid", "efficientnet", "resnetv2"]


@pytest.mark.timm
def test_every_tag_of_every_architecture_is_timms():
    timm = import_timm()
    theirs, weights = [], 0
    for architecture in sorted(name for module in MODULES for name in timm.list_models(module=module)):
        cfgs = timm.models.get_arch_pretrained_cfgs(architecture)
        theirs.append(architecture)
        ours = {entry.name: entry for entry in catalog.entries(architecture)}
        # The tags that have weights, and an architecture's default in any case; the default first.
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
    assert theirs == sorted(catalog._catalog())
    assert len(theirs) >= 403
    assert weights >= 632


@pytest.mark.timm
def test_quick_gelu_is_known_of_every_tag_that_was_trained_with_it():
    timm = import_timm()
    marked = set()
    for architecture in catalog._catalog():
        marked |= {entry.name for entry in catalog.entries(architecture) if entry.activation}
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
def test_parameters_are_those_of_timms_model(name):
    import torch

    with torch.device("meta"):
        model = import_timm().create_model(name)
    (entry,) = [entry for entry in catalog.entries(name.split(".")[0]) if entry.name == name]
    assert entry.params == sum(parameter.numel() for parameter in model.parameters())


def test_published_numbers_are_plausible():
    """All rows: a number in the wrong column would show."""
    rows = [entry for architecture in catalog._catalog() for entry in catalog.entries(architecture)]
    rated = [entry for entry in rows if entry.top1]
    assert len(rated) >= 379
    for entry in rated:
        assert 40 < entry.top1 < entry.top5 < 100, entry.name
        assert entry.num_classes == 1000, entry.name
    for entry in rows:
        assert 3e5 < entry.params < 3e9, entry.name
        assert all(1e7 < macs < 3e12 for macs in entry.macs.values()), entry.name
        # None is unknown but of an architecture that is not here yet.
        if entry.macs or entry.architecture in registry.architectures():
            assert set(entry.macs) == {entry.image_size, entry.test_image_size}, entry.name


def test_the_generator_keeps_what_a_table_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import make_catalog

    table = tmp_path / "results.csv"
    table.write_text("model,img_size,top1,top5,infer_img_size,infer_gmacs\nresnet50.a1_in1k,224,1,2,224,0.29\n")
    accuracies, costs = make_catalog.published(table), make_catalog.multiply_adds(table)
    assert accuracies["resnet50.a1_in1k"] == {"224": [1.0, 2.0], "288": [81.24, 95.112]}
    assert accuracies["resnet50.tv_in1k"] == {"224": [76.156, 92.866]}
    assert costs["resnet50"]["224"] == 290_000_000
    assert costs["resnet50"]["288"] == 6_800_000_000

    # What timm publishes nowhere is counted, each time anew.
    assert costs["vit_base_patch14_reg1_tipsv2"] == {}
    make_catalog.count(costs, "test_vit", 1000, {160, 96})
    make_catalog.count(costs, "not_here_yet", 1000, {224})
    assert costs["test_vit"]["160"] == 40_000_000
    assert costs["test_vit"]["96"] == model_info("test_vit", 96).total.multiply_adds_with_attention
    assert costs["not_here_yet"] == {}


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


@pytest.mark.parametrize("spelling", ["timm/resnet50.a1_in1k", "hf_hub:timm/resnet50.a1_in1k", "hf-hub:timm/resnet50"])
def test_names_as_timm_spells_where_its_weights_are(spelling):
    assert catalog.lookup(spelling) == catalog.lookup("resnet50.a1_in1k")


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
        ("resnet50.augreg2_in21k_ft_in1k", ["unknown weight tag of resnet50", "it is a tag of vit_base_patch16_224"]),
        ("vit_base_patch16_224.a1_in1k", ["unknown weight tag of vit_base_patch16_224", "it is a tag of "]),
        ("../../resnet50", ["'../../resnet50' is not the name of a model", "checkpoint_path"]),
        ("resnet50/../x", ["is not the name of a model"]),
        ("resnet50\n.a1_in1k", ["is not the name of a model"]),
        ("someone/resnet50.a1_in1k", ["is not the name of a model"]),
        ("", ["unknown model ''"]),
        ("..", ["unknown model ''"]),
    ],
)
def test_a_misspelled_name_is_answered_with_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        catalog.lookup(name)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_architecture_of_ones_own_has_a_row_without_weights(monkeypatch):
    row = registry.variant("test_vit")
    monkeypatch.setitem(registry._VARIANTS, "mine", row)
    entry = catalog.lookup("mine")
    assert (entry.name, entry.hub_id, entry.license_note) == ("mine", None, None)
    assert entry.preprocess.image_size == 224


def test_a_row_of_an_architecture_that_is_not_here_yet_is_harmless(monkeypatch):
    monkeypatch.delitem(registry._VARIANTS, "resnet50")
    with pytest.raises(UserError, match="unknown model 'resnet50'"):
        catalog.lookup("resnet50.a1_in1k")
    for pretrained in (False, True):
        names = catalog.list_models(pretrained=pretrained)
        assert "resnet50d" in {name.split(".")[0] for name in names}
        assert "resnet50" not in {name.split(".")[0] for name in names}


def test_budgets_and_orders():
    def numbers(names, number):
        return [number(catalog.lookup(name)) for name in names]

    small = catalog.list_models(family="resnet", max_params="26M", sort="params")
    params = numbers(small, lambda entry: entry.params)
    assert params == sorted(params)
    assert "resnet50" in small  # 25,557,032
    assert params[-1] <= 26e6
    assert small == catalog.list_models(family="resnet", max_params=26_000_000, sort="params")
    assert sorted(small) == sorted(catalog.list_models(family="resnet", max_params="0.026g"))
    assert catalog.list_models(["test_vit", "resnet1*t"]) == ["resnet10t", "resnet14t", "test_vit"]
    assert "resnet50" not in catalog.list_models(max_params=25_557_031)
    assert "resnet50" in catalog.list_models(max_params=25_557_032)

    best = catalog.list_models(family="vit", pretrained=True, sort="top1")
    top1 = numbers(best, lambda entry: entry.top1)
    known = [x for x in top1 if x is not None]
    assert known == sorted(known, reverse=True)
    assert top1 == known + [None] * (len(top1) - len(known))
    assert sorted(best) == sorted(catalog.list_models(family="vit", pretrained=True))

    light = catalog.list_models(max_macs="2G", sort="macs")
    macs = numbers(light, lambda entry: entry.macs[entry.rated_size])
    assert macs == sorted(macs)
    assert catalog.list_models(max_macs="5T") == catalog.list_models()
    assert "efficientnet_b0" in light  # 0.40 G
    assert "resnet50" not in light
    assert catalog.lookup("resnet50").macs == {224: 4_110_000_000, 288: 6_800_000_000}


def test_licenses_as_a_filter():
    every = catalog.list_models(pretrained=True)
    free, other = (catalog.list_models(pretrained=True, license=pattern) for pattern in ("Apache-2.0", "cc-*"))
    assert "resnet50.a1_in1k" in free
    assert "resnet50.fb_swsl_ig1b_ft_in1k" in other
    assert set(free) | set(other) < set(every)
    assert not set(free) & set(other)
    with pytest.raises(UserError, match=r"unknown license 'gpl'.*apache-2\.0"):
        catalog.list_models(license="gpl")


@pytest.mark.parametrize("budget", ["many", "30 M M", "-1", "", "1e", "nan", [], True])
def test_a_budget_that_is_no_number(budget):
    with pytest.raises(UserError, match="max_params is a number such as 30M"):
        catalog.list_models(max_params=budget)


def test_an_order_that_there_is_not():
    with pytest.raises(UserError, match="unknown order 'top'; did you mean 'top1'"):
        catalog.list_models(sort="top")


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


def test_licenses_that_need_a_word():
    assert catalog.lookup("resnet50.a1_in1k").license_note is None
    note = catalog.lookup("resnet50.fb_swsl_ig1b_ft_in1k").license_note
    assert note == "the weights resnet50.fb_swsl_ig1b_ft_in1k are licensed cc-by-nc-4.0: non-commercial use only"


# --- The trap of quick GELU -------------------------------------------------------------------------------------------

PLAIN = "vit_base_patch32_clip_224"  # exact GELU; its tag openai was trained with the quick one
HUGE = "vit_huge_patch14_clip_378"  # exact GELU; all of its tags were trained with the quick one


@pytest.fixture
def built(monkeypatch):
    """Models that are asked for are noted, not built; the architecture stands in the registry in any case."""
    noted = []
    monkeypatch.setitem(registry._VARIANTS, PLAIN, registry.variant("test_vit"))
    monkeypatch.setattr(registry, "options", lambda architecture: ["activation", "num_classes"])
    monkeypatch.setattr(registry, "build", lambda architecture, **options: noted.append(options))
    monkeypatch.setattr(create, "eval_view", lambda model: model)
    return noted


def test_weights_trained_with_quick_gelu_run_with_it(built, caplog):
    create.create_model(f"{PLAIN}.openai")
    assert built[-1]["activation"] == "quick_gelu"
    assert f"the weights {PLAIN}.openai were trained with activation='quick_gelu': it is used" in caplog.text


def test_others_and_who_says_so_get_what_they_asked_for(built, caplog):
    create.create_model(f"{PLAIN}.laion2b_ft_in1k")
    assert "activation" not in built[-1]
    create.create_model(PLAIN)
    assert "activation" not in built[-1]
    create.create_model(f"{PLAIN}.openai", activation="gelu")
    assert built[-1]["activation"] == "gelu"
    assert not caplog.records


@pytest.mark.timm
@pytest.mark.parametrize("name", [f"{PLAIN}.openai", HUGE])
@pytest.mark.parametrize("by_name", [True, False])
def test_an_export_runs_as_it_was(name, by_name, tmp_path):
    architecture = name.partition(".")[0]
    if architecture not in registry.architectures():
        pytest.skip("not here yet")
    import torch
    from support.against_timm import fill, images, randomized

    patch = 14 if architecture == HUGE else 32
    size = {"depth": 1, "embed_dim": 64, "num_heads": 2, "num_classes": 5}
    if by_name:
        model = create.create_model(name, image_size=2 * patch, **size)
    else:  # exact GELU, for no weights are named
        model = eval_view(registry.build(architecture, image_size=2 * patch, **size, rngs=nnx.Rngs(0)))
    theirs = randomized(import_timm().create_model(architecture, img_size=2 * patch, **size))
    fill(model, theirs.state_dict())
    preprocess = Preprocess(image_size=2 * patch)
    classifier.save_classifier(tmp_path, classifier.Classifier(model, tuple("abcde"), preprocess))
    x, ours = images(2, 2 * patch, 2 * patch, 3)
    expected = model(ours)
    assert (classifier.load_classifier(tmp_path).model(ours) == expected).all()
    again = import_timm().create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert abs(again(x).numpy() - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.timm
def test_either_name_gives_the_same_numbers():
    """Against real timm, as soon as the family has the names."""
    twin = "vit_base_patch32_clip_quickgelu_224"
    if not {PLAIN, twin} <= set(registry.architectures()):
        pytest.skip("not here yet")
    import torch
    from support.against_timm import fill, images, randomized

    options = {"depth": 1, "num_classes": 5}
    theirs = randomized(import_timm().create_model(twin, img_size=64, **options).eval())
    x, ours = images(2, 64, 64, 3)
    with torch.no_grad():
        expected = theirs(x).numpy()
    logits = {
        name: fill(create.create_model(name, image_size=64, **options), theirs.state_dict())(ours)
        for name in (f"{twin}.openai", f"{PLAIN}.openai", PLAIN)
    }
    scale = abs(expected).max()
    assert abs(logits[f"{twin}.openai"] - expected).max() < 1e-5 * scale
    assert abs(logits[f"{PLAIN}.openai"] - expected).max() < 1e-5 * scale
    assert abs(logits[PLAIN] - expected).max() > 1e-4 * scale
