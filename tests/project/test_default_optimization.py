"""Representative tests at XLA's default optimization, which users run; all others compile with the least effort."""

from __future__ import annotations

import os
import subprocess
import sys

from support.compile_flags import LEAST_EFFORT
from support.paths import ROOT, TESTS

STEP = [
    "train/test_step.py::test_equals_the_plain_nnx_loop",
    "train/test_step.py::test_accumulation_is_the_whole_batch",
]
MODELS = [
    "models/test_golden.py::test_logits_match_timm[test_resnet-75]",
    "models/test_golden.py::test_logits_match_timm[test_vit-64]",
    "models/test_golden.py::test_logits_match_timm[test_efficientnet-75]",
]
LAYERS = [
    "models/test_layers.py::test_depthwise_values_and_gradients_match_xla[3-1-torch]",
    "models/test_layers.py::test_grouped_values_and_gradients_match_xla[24-48-3-2]",
    "models/test_layers.py::test_convolutions_of_tiny_images_match_xla[3-1]",
    "models/test_layers.py::test_norms_compute_in_bfloat16_with_statistics_in_float32[GroupNorm]",
    "models/test_batch_norm.py::test_batch_norm_in_evaluation_matches_the_formula",
    "models/test_layers.py::test_squeeze_excite_by_hand",
    "models/test_layers.py::test_max_pool_on_every_platform",
]


def test_at_the_default_optimization() -> None:
    flags = " ".join(x for x in os.environ["XLA_FLAGS"].split() if x not in LEAST_EFFORT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            *(str(TESTS / test) for test in STEP + MODELS + LAYERS),
        ],
        cwd=ROOT,
        env={**os.environ, "JAXVISION_TEST_OPTIMIZATION": "default", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
