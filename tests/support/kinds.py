"""The architectures that stand for all: `KINDS` has every kind of part of every family, as small as it comes.

The others differ from these only in depth, width and size. The ordinary suite tests `REPRESENTATIVE`, a quarter of the
kinds; ``--slow`` tests all architectures.
"""

from __future__ import annotations

import pytest

from jaxvision.models import registry

_KINDS = """
test_resnet resnet18 resnet50 resnet50d resnet10t resnext50_32x4d seresnet50 ecaresnet26t ecaresnet50d_pruned
resnetaa50 resnetblur18 resnetrs50 resnet50_gn

resnetv2_18 resnetv2_34d resnetv2_50 resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn resnetv2_50x1_bit

test_vit test_vit2 test_vit3 test_vit4 vit_tiny_patch16_224 vit_small_patch32_224 deit_tiny_distilled_patch16_224
deit3_small_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 flexivit_small
vit_xsmall_patch16_clip_224 vit_base_patch16_clip_quickgelu_224 vit_base_patch16_siglip_224
vit_base_patch32_siglip_256 vit_medium_patch16_gap_256 vit_pwee_patch16_reg1_gap_256 vit_dwee_patch16_reg1_gap_256
vit_dpwee_patch16_reg1_gap_256 vit_base_patch16_rpn_224 vit_base_patch16_xp_224 vit_small_patch16_18x2_224
beit3_base_patch16_224 vit_tiny_r_s16_p8_224 vit_base_mci_224

test_efficientnet test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos efficientnet_b0 tf_efficientnet_b0
tf_efficientnet_lite0 efficientnet_b1_pruned efficientnet_es tf_efficientnetv2_b0 gc_efficientnetv2_rw_t mixnet_s
tf_mixnet_s mobilenetv1_100 mobilenetv2_050 mnasnet_small semnasnet_075 fbnetc_100 spnasnet_100 tinynet_e
efficientnet_cc_b0_4e efficientnet_x_b3 efficientnet_blur_b0 efficientnet_b0_g8_gn mobilenet_edgetpu_v2_xs
"""
KINDS = _KINDS.split()

# Chosen so that most kinds of stem, norm, attention, pooling and convolution occur.
_REPRESENTATIVE = """
test_resnet resnet50_gn resnetblur18 ecaresnet26t

resnetv2_18 resnetv2_50d_evos resnetv2_50x1_bit

test_vit test_vit2 test_vit3 test_vit4 deit_tiny_distilled_patch16_224 vit_small_patch14_reg4_dinov2
vit_tiny_r_s16_p8_224

test_efficientnet test_efficientnet_gn test_efficientnet_evos tf_efficientnet_lite0 tf_efficientnetv2_b0
efficientnet_cc_b0_4e mixnet_s
"""
REPRESENTATIVE = _REPRESENTATIVE.split()
assert set(REPRESENTATIVE) <= set(KINDS)


def every_architecture() -> list:
    """Returns all names as parameters of a test; those that are not representative are slow."""
    assert set(KINDS) <= set(registry.architectures())
    marks = {name: [] if name in REPRESENTATIVE else [pytest.mark.slow] for name in registry.architectures()}
    return [pytest.param(name, marks=each) for name, each in marks.items()]
