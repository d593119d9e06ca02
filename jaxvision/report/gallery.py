"""Galleries of images: the most confident mistakes, and overlays that explain predictions."""

from __future__ import annotations

import numpy as np

from jaxvision.report.content import LabeledImage, Report
from jaxvision.report.markup import Markup, image_uri, join, meter, tag

# These limits keep a page of 1,000 classes below 5 MB, together with those in confusions.py and classes.py.
_MAX_MISTAKES, _MISTAKE_SIDE = 60, 160  # images, pixels of the longer side
_MAX_EXPLANATIONS, _EXPLANATION_SIDE = 16, 360


def mistakes_section(report: Report) -> Markup | None:
    """Returns a gallery of the misclassified images, or None if the report has none."""
    if not report.mistakes:
        return None
    figures = []
    for example in report.mistakes[:_MAX_MISTAKES]:
        image = image_tag(example.image, side=_MISTAKE_SIDE, alt=report.class_name(example.true))
        figures.append(tag("figure", image, _caption(report, example)))
    lead = "The most confident mistakes, with the predicted and the correct class."
    return join([tag("p", lead, class_="lead"), tag("div", figures, class_="gallery")])


def explanations_section(report: Report) -> Markup | None:
    """Returns a gallery of images beside their overlays, or None if the report has none."""
    if not report.explanations:
        return None
    figures = []
    for example in report.explanations[:_MAX_EXPLANATIONS]:
        images = [image_tag(example.image, side=_EXPLANATION_SIDE, alt="original")]
        if example.overlay is not None:
            images.append(image_tag(example.overlay, side=_EXPLANATION_SIDE, alt=report.explanation_method))
        figures.append(tag("figure", tag("div", images, class_="pair"), _caption(report, example)))
    lead = f"Left: the image. Right: the regions that influenced the prediction, by {report.explanation_method}."
    return join([tag("p", lead, class_="lead"), tag("div", figures, class_="gallery wide")])


def _caption(report: Report, example: LabeledImage) -> Markup:
    true, predicted = report.class_name(example.true), report.class_name(example.predicted)
    is_wrong = bool(true) and true != predicted
    kind = "wrong" if is_wrong else "right"
    confidence = None
    if example.confidence is not None:
        percent = tag("span", f"{100 * example.confidence:.1f} %", class_="sure")
        confidence = join([tag("span", meter(example.confidence, kind)), percent])
    where = str(example.where)
    return tag(
        "figcaption",
        tag("b", predicted, class_=kind, title=predicted) if predicted else None,
        tag("span", "true: ", tag("span", true, class_="class"), title=true) if is_wrong else None,
        tag("span", confidence, class_="confidence") if confidence else None,
        tag("span", where, class_="where", title=where) if where else None,
    )


def image_tag(image: np.ndarray, *, side: int, alt: str) -> Markup:
    """Returns an embedded image, reduced to `side` pixels; one of at most 64 pixels stays sharp."""
    height, width = np.shape(image)[:2]
    # Small images are shown with sharp pixels: smoothed, they would look like large images of poor quality.
    small = "pixels" if max(height, width) <= 64 else None
    return tag("img", src=image_uri(image, side=side), alt=alt, class_=small)
