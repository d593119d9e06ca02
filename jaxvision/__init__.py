"""jaxvision: ResNet, Vision Transformer and EfficientNet for JAX, with timm's weights and a sharded trainer.

>>> import jaxvision
>>> model = jaxvision.create_model("test_vit", num_classes=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxvision.lazy import lazy_names

if TYPE_CHECKING:
    from jaxvision.advice import recommend
    from jaxvision.analysis.cost import model_info
    from jaxvision.classifier import Classifier, load_classifier, save_classifier
    from jaxvision.create import create_model
    from jaxvision.ensemble import Ensemble
    from jaxvision.errors import UserError
    from jaxvision.models.features import FeatureExtractor
    from jaxvision.models.layers.mode import eval_view, train_view
    from jaxvision.models.registry import register_model
    from jaxvision.run.publish import push_to_hub
    from jaxvision.train.partial import add_lora, freeze, merge_lora, unfreeze
    from jaxvision.weights.listing import list_models
    from jaxvision.weights.timm import load_timm, save_timm

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Ensemble",
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
    "push_to_hub",
    "recommend",
    "register_model",
    "save_classifier",
    "save_timm",
    "train_view",
    "unfreeze",
]

# Where the public names live. They are imported on first use: `jaxvision --help` does not import JAX, and `jaxvision
# doctor` works when JAX or Flax cannot be imported.
_HOME = {
    "advice": ("recommend",),
    "analysis.cost": ("model_info",),
    "classifier": ("Classifier", "load_classifier", "save_classifier"),
    "create": ("create_model",),
    "ensemble": ("Ensemble",),
    "errors": ("UserError",),
    "models.features": ("FeatureExtractor",),
    "models.layers.mode": ("eval_view", "train_view"),
    "models.registry": ("register_model",),
    "run.publish": ("push_to_hub",),
    "train.partial": ("add_lora", "freeze", "merge_lora", "unfreeze"),
    "weights.listing": ("list_models",),
    "weights.timm": ("load_timm", "save_timm"),
}
_MODULES = (
    "advice",
    "analysis",
    "augment",
    "checkpoint",
    "create",
    "data",
    "eval",
    "features",
    "models",
    "parallel",
    "plan",
    "report",
    "run",
    "soup",
    "train",
    "weights",
)

__getattr__, __dir__ = lazy_names(__name__, _HOME, modules=_MODULES)
