"""The families: each file registers its table of variants when it is imported."""

from jaxvision.models import vit  # noqa: F401
