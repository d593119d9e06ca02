"""jaxvision: ResNet, Vision Transformer and EfficientNet for JAX, with timm's weights and a sharded trainer.

>>> import jaxvision
>>> model = jaxvision.create_model("test_vit", num_classes=10)
"""

from jaxvision.analysis.cost import model_info
from jaxvision.create import Classifier, create_model, load_classifier, save_classifier
from jaxvision.errors import UserError
from jaxvision.models.features import FeatureExtractor
from jaxvision.models.layers.mode import eval_view, train_view
from jaxvision.train.partial import add_lora, freeze, merge_lora, unfreeze
from jaxvision.weights.catalog import list_models
from jaxvision.weights.timm import load_timm, save_timm

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "FeatureExtractor",
    "UserError",
    "add_lora",
    "create_model",
    "eval_view",
    "freeze",
    "list_models",
    "load_classifier",
    "load_timm",
    "merge_lora",
    "model_info",
    "save_classifier",
    "save_timm",
    "train_view",
    "unfreeze",
]
