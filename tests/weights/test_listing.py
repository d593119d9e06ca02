"""`list_models`: patterns, families, limits, licenses and orders, compared with timm's own listing."""

from __future__ import annotations

import fnmatch

import pytest
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog, listing

MODULES = ["resnet", "vision_transformer", "deit", "vision_transformer_hybrid", "efficientnet", "resnetv2"]


@pytest.mark.timm
@pytest.mark.parametrize("pattern", ["*", "resnet*", "vit_*", "*.a1_in1k", "efficientnet_b?", "*384*", "nothing*"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_lists_match_timm(pattern, pretrained):
    known = set(registry.architectures())
    theirs = import_timm().list_models(pattern, module=MODULES, pretrained=pretrained)
    expected = [name for name in theirs if name.split(".")[0] in known]
    assert listing.list_models(pattern, pretrained=pretrained) == expected


def test_limits_and_orders():
    def numbers(names, number):
        return [number(catalog.lookup(name)) for name in names]

    small = listing.list_models(family="resnet", max_params="26M", sort="params")
    params = numbers(small, lambda entry: entry.params)
    assert params == sorted(params)
    assert "resnet50" in small  # 25,557,032
    assert params[-1] <= 26e6
    assert small == listing.list_models(family="resnet", max_params=26_000_000, sort="params")
    assert sorted(small) == sorted(listing.list_models(family="resnet", max_params="0.026g"))
    assert listing.list_models(["test_vit", "resnet1*t"]) == ["resnet10t", "resnet14t", "test_vit"]
    assert "resnet50" not in listing.list_models(max_params=25_557_031)
    assert "resnet50" in listing.list_models(max_params=25_557_032)

    best = listing.list_models(family="vit", pretrained=True, sort="top1")
    top1 = numbers(best, lambda entry: entry.top1)
    known = [x for x in top1 if x is not None]
    assert known == sorted(known, reverse=True)
    assert top1 == known + [None] * (len(top1) - len(known))
    assert sorted(best) == sorted(listing.list_models(family="vit", pretrained=True))

    light = listing.list_models(max_macs="2G", sort="macs")
    macs = numbers(light, lambda entry: entry.macs[entry.rated_size])
    assert macs == sorted(macs)
    assert listing.list_models(max_macs="5T") == listing.list_models()
    assert "efficientnet_b0" in light  # 0.40 G
    assert "resnet50" not in light
    assert catalog.lookup("resnet50").macs == {224: 4_110_000_000, 288: 6_800_000_000}


def test_filtering_by_license():
    every = listing.list_models(pretrained=True)
    free, other = (listing.list_models(pretrained=True, license=pattern) for pattern in ("Apache-2.0", "cc-*"))
    assert "resnet50.a1_in1k" in free
    assert "resnet50.fb_swsl_ig1b_ft_in1k" in other
    assert set(free) | set(other) < set(every)
    assert not set(free) & set(other)
    with pytest.raises(UserError, match=r"license: got 'gpl', expected a license of weights\..*apache-2\.0"):
        listing.list_models(license="gpl")


@pytest.mark.parametrize("limit", ["many", "30 M M", "-1", "", "1e", "nan", [], True])
def test_a_limit_that_is_not_a_number(limit):
    with pytest.raises(UserError, match="expected a number such as 30M"):
        listing.list_models(max_params=limit)


def test_an_unknown_order():
    with pytest.raises(UserError, match=r"sort: got 'top', expected one of .* Did you mean 'top1'"):
        listing.list_models(sort="top")


def test_lists():
    assert listing.list_models("resnet*", family="vit") == []
    assert listing.list_models("*patch32_384", family="vit") == [
        "vit_base_patch32_384",
        "vit_large_patch32_384",
        "vit_small_patch32_384",
    ]
    every = listing.list_models(pretrained=True)
    assert len(every) == len(set(every)) > 100
    assert fnmatch.filter(every, "resnet50.*") == listing.list_models("resnet50", pretrained=True)
    with pytest.raises(UserError, match=r"family: got 'resnets', expected one of .* Did you mean 'resnet'"):
        listing.list_models(family="resnets")
