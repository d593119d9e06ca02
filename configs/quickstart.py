"""Handwritten digits in under two minutes on two CPU cores, from scratch, with any of the three families.

    python -m jaxvision.main --config configs/quickstart.py:vit
    python -m jaxvision.main --config configs/quickstart.py:resnet
    python -m jaxvision.main --config configs/quickstart.py:efficientnet

The data are scikit-learn's digits, 1,797 real 8×8 scans (UCI, Alpaydin & Kaynak 1998), carried by the
package: nothing is downloaded. RESULT
"""

from ml_collections import ConfigDict

MODELS = {
    "vit": {"name": "test_vit", "image_size": 16, "patch_size": 4},
    "resnet": {"name": "test_resnet", "image_size": 32},
    "efficientnet": {"name": "test_efficientnet", "image_size": 32},
}


def get_config(family: str = "vit") -> ConfigDict:
    if family not in MODELS:
        raise ValueError(f"unknown family {family!r}; choose one of {', '.join(MODELS)}")
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict(MODELS[family])
    config.source = ConfigDict({"name": "digits"})
    config.data = ConfigDict({"batch_size": 64})
    config.augment = ConfigDict({"crop_padding": 1})
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05})
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 2.0})
    config.train = ConfigDict({"epochs": 20})
    return config
