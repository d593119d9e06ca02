"""The documents: their Python snippets run, and their links, files and keys exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image
from support.paths import ROOT

import jaxvision
from jaxvision import run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.run.config import leaves, load, packaged

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# tests/run/test_extending.py runs the module of docs/extending.md, and trains with its keys.
PAGES_OF_BUILTINS = [page for page in PAGES if page.name != "extending.md"]
# Tests replace the models of the documents by tiny ones of the same family, without pretrained weights.
STAND_INS = [
    (r"vit_base_patch16_224\.[a-z0-9_]+", "test_vit"),
    (r"resnet50(\.[a-z0-9_]+)?", "test_resnet"),
    (r"pretrained=True", "pretrained=False"),
    (r"224, 224", "160, 160"),
    (r"image_size=384", "image_size=160"),
]


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES_OF_BUILTINS, ids=lambda p: p.name)
def test_python_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "runs/mine" in "".join(snippets(page)):  # the files that the page's commands would have written
        model = create_model("test_resnet", num_classes=2, image_size=32)
        save_classifier(tmp_path / "runs/mine/export", Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
        for name in ("cat", "dog"):
            Image.new("RGB", (50, 40)).save(f"{name}.jpg")
    names: dict[str, object] = {}
    for snippet in snippets(page):
        if "->" in snippet and "[b, " in snippet and "import" not in snippet and page.name == "architecture.md":
            continue  # signatures of the model protocol
        for pattern, stand_in in STAND_INS:
            snippet = re.sub(pattern, stand_in, snippet)
        exec(compile(snippet, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text) + re.findall(r'<img src="([^"]+)"', text):
        assert (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text):
        assert anchor in anchors(page.parent / target if target else page), anchor
    for config in re.findall(r"configs/(\w+)\.py", text):
        assert f"configs/{config}.py" in packaged(), config


@pytest.mark.parametrize("page", PAGES_OF_BUILTINS, ids=lambda p: p.name)
def test_commands_name_keys_that_exist(page: Path) -> None:
    known = {"seed", "mesh.data", "mesh.fsdp", "mesh.tensor"}
    for name in packaged():
        known |= set(leaves(run.complete(load(name))))
    for key in re.findall(r"--config\.([a-z_.]+[a-z][0-9]?)", page.read_text()):
        if key not in ("key", "section.key"):
            assert key in known, key


def test_the_page_of_config_keys_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_config_docs", ROOT / "tools" / "make_config_docs.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs" / "configs.md").read_text() == tool.page(), "run python tools/make_config_docs.py"


def test_no_document_installs_the_unrelated_package() -> None:
    for page in [*PAGES, *(ROOT / "configs").glob("*.py"), *(ROOT / "jaxvision").rglob("*.py")]:
        assert not re.search(r"pip install\s+(-U\s+|--upgrade\s+)?['\"]?jaxvision(?!-nnx)", page.read_text()), page


def test_images_are_small() -> None:
    for image in (ROOT / "docs" / "images").glob("*"):
        assert image.stat().st_size < 300_000, image


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert "cff-version: 1.2.0\n" in citation
    assert f"\nversion: {jaxvision.__version__}\n" in citation
