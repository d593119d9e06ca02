"""Publishing: the model card, the upload to a hub on this machine with the real client, and the errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image
from support.fake_hub import Hub, running_hub
from support.quick import quick
from support.reference import import_timm

import jaxvision
from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.run.publish import write_repository
from jaxvision.run.workdir import result_files, write_config, write_result

REPO = "someone/pets"

# huggingface_hub 2.4 uploads large files with an argument that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[Hub]]:
    with running_hub(str(tmp_path / "hub")) as hub:
        yield hub


def classifier(**options: object) -> Classifier:
    model = create_model("test_resnet", num_classes=2, image_size=32, seed=3, **options)
    return Classifier(model, ("cat", "dog"), Preprocess(image_size=32))


def finished_run(workdir: Path, **sections: dict) -> Path:
    """Returns the workdir of a run that has left all its files, without training."""
    save_classifier(workdir / "export", classifier())
    sections.setdefault("source", {"name": "folder", "data_dir": str(workdir.parent / "secret" / "photos")})
    sections.setdefault("model", {"name": "resnet18.fb_swsl_ig1b_ft_in1k", "pretrained": True})
    write_config(workdir, run.complete(quick("resnet", **sections)))
    for path in result_files(workdir).values():
        if not path.exists():
            path.write_text("x")
    metrics = {"top1": 0.9375, "top5": 1.0, "loss": 0.25, "calibration_error": 0.03125, "count": 64}
    write_result(workdir, step=20, split="test", metrics=metrics)
    return workdir


def card(tmp_path: Path, source: object, **options: object) -> ModelCard:
    write_repository(tmp_path / "repository", source, REPO, **options)
    return ModelCard((tmp_path / "repository" / "README.md").read_text())


def snippets(text: str) -> dict[str, str]:
    """Returns the Python snippets of a card by the module that they import first."""
    return {re.match(r"import (\w+)", code)[1]: code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)}


def test_a_pushed_run_is_loaded_by_its_own_snippet(hub, tmp_path, monkeypatch, capsys):
    workdir = finished_run(tmp_path / "run")
    assert cli.main(["push", str(workdir), REPO, "--license", "mit", "--private"]) == 0
    assert capsys.readouterr().out == f"{constants.ENDPOINT}/{REPO}\n"
    (repo,) = hub.repos.values()
    assert repo["visibility"] == "private"
    assert repo["files"].keys() == {"model.safetensors", "config.json", "README.md"}
    assert len(repo["titles"]) == 1  # one commit, so an upload is complete or absent
    for name in ("model.safetensors", "config.json"):
        assert repo["files"][name] == (workdir / "export" / name).read_bytes()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    exec(snippets(repo["files"]["README.md"].decode())["jaxvision"], {})
    name, probability = capsys.readouterr().out.split()
    own = jaxvision.load_classifier(workdir)
    expected = np.asarray(own.to_probabilities(own.model(own.images("photo.jpg"))))[0]
    assert name == ("cat", "dog")[expected.argmax()]
    assert float(probability) == pytest.approx(expected.max(), rel=1e-5)


def test_pushing_again_adds_a_commit(hub):
    for message in ("First", "Second"):
        jaxvision.push_to_hub(classifier(), REPO, license="mit", message=message)
    assert hub.repos[REPO]["titles"] == ["First", "Second"]
    assert hub.repos[REPO]["visibility"] is None


@pytest.mark.timm
def test_timm_gives_the_same_probabilities(hub, tmp_path, monkeypatch, capsys):
    import_timm()
    jaxvision.push_to_hub(classifier(), REPO, license="mit")
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((80, 64)).save("photo.jpg")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    printed = {}
    for module, code in snippets(hub.repos[REPO]["files"]["README.md"].decode()).items():
        exec(code, {})
        printed[module] = capsys.readouterr().out.split()
    assert printed["timm"][0] == printed["jaxvision"][0]
    assert float(printed["timm"][1]) == pytest.approx(float(printed["jaxvision"][1]), abs=1e-5)


def test_probabilities_of_a_sigmoid_survive_the_hub(hub):
    model = classifier()
    jaxvision.push_to_hub(Classifier(model.model, model.classes, model.preprocess, "sigmoid"), REPO, license="mit")
    assert jaxvision.load_classifier(f"hf-hub:{REPO}").probabilities == "sigmoid"
    text = hub.repos[REPO]["files"]["README.md"].decode()
    assert "logits.sigmoid()[0]" in text
    assert "do not sum to 1" in text


def test_the_card_of_a_run(tmp_path, caplog):
    found = card(tmp_path, finished_run(tmp_path / "run"))
    data = found.data
    facts = data.to_dict()
    assert (facts["library_name"], facts["pipeline_tag"]) == ("timm", "image-classification")
    assert data.tags == ["image-classification", "timm", "jaxvision"]
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "timm/resnet18.fb_swsl_ig1b_ft_in1k")
    assert data.datasets is None  # the user's own photographs are not a public dataset
    (top1,) = data.eval_results  # with two classes a top-5 accuracy says nothing
    assert (top1.metric_type, top1.metric_value, top1.dataset_split) == ("accuracy", 0.9375, "test")
    for text in (
        "| metric | on 64 images of the test data |",
        "| top-1 | 93.75 % |",
        "`cat`, `dog`",
        "the folder `photos`",
        '"name": "resnet18.fb_swsl_ig1b_ft_in1k"',
        "non-commercial use only",
    ):
        assert text in found.content, text
    assert "top-5" not in found.content
    assert str(tmp_path) not in found.content
    assert "secret" not in found.content
    assert "non-commercial use only; a model that is trained from them may be bound by it" in caplog.text


def test_the_card_says_that_the_validation_data_chose_the_checkpoint(tmp_path):
    workdir = finished_run(tmp_path / "run", checkpoint={"best": "top1"})
    write_result(workdir, step=20, split="validation", metrics={"top1": 0.5, "count": 8})
    found = card(tmp_path, workdir / "export", license="mit")
    assert found.data.license == "mit"
    assert "chosen by these images, so the result is optimistic" in found.content
    assert "The weights it started from: cc-by-nc-4.0." in found.content


def test_the_card_of_a_probe_names_the_weights_of_the_features(tmp_path):
    workdir = finished_run(tmp_path / "run", model={"name": "resnet18", "pretrained": False})
    record = json.loads((workdir / "config.json").read_text())
    record["probe"] = {"model": "resnet18.a1_in1k", "checkpoint_path": None, "folds": 5}
    write_config(workdir, record)
    metrics = {"top1": 0.5, "cross_validated_accuracy": 0.5, "standard_error": 0.125, "regularization": 0.1, "count": 8}
    write_result(workdir, step=0, split="cross-validation", metrics=metrics)
    found = card(tmp_path, workdir)
    assert (found.data.base_model, found.data.license) == ("timm/resnet18.a1_in1k", "apache-2.0")
    for text in ("features of `resnet18.a1_in1k`", "8 images of the cross-validation |", "standard error | 12.50 % |"):
        assert text in found.content, text
    for text in ("random weights", "regularization", "cross-validated", '"optimizer"'):
        assert text not in found.content, text


def test_names_of_any_bytes_on_the_card(tmp_path):
    source = {"name": "folder", "data_dir": os.fsdecode(b"/x/`a`\n\xff")}
    found = card(tmp_path, finished_run(tmp_path / "run", source=source, model={"name": "resnet18"}))
    assert "the folder `'a'\\n\\xff`." in found.content


def test_relative_folders_are_left_out(tmp_path):
    sections = {
        "source": {"name": "folder", "data_dir": "clients/acme/photos"},
        "model": {"name": "local-dir:clients/acme/start", "pretrained": True},
        "teacher": {"name": "clients/acme/teacher/"},
    }
    workdir = finished_run(tmp_path / "run")
    record = json.loads((workdir / "config.json").read_text())
    write_config(workdir, record | {name: record[name] | section for name, section in sections.items()})
    text = card(tmp_path, workdir, license="mit").content
    for name in ('".../photos"', '"local-dir:.../start"', '".../teacher"'):
        assert name in text, name
    assert "acme" not in text


@pytest.mark.parametrize("path", ["/mnt/acme/private", "~/private", "acme/data/private", "../private"])
def test_a_folder_of_another_machine_is_no_public_dataset(path, tmp_path):
    workdir = finished_run(tmp_path / "run")
    record = json.loads((workdir / "config.json").read_text())
    write_config(workdir, record | {"source": {"name": "huggingface", "path": path}})
    found = card(tmp_path, workdir)
    assert found.data.datasets is None
    assert '".../private"' in found.content
    assert "acme" not in found.content


@pytest.mark.parametrize(
    ("source", "datasets"),
    [
        ({"name": "tfds", "dataset": "cifar10"}, ["cifar10"]),
        ({"name": "tfds", "dataset": "imagenette/full-size-v2"}, ["imagenette"]),
        ({"name": "huggingface", "path": "uoft-cs/cifar10"}, ["uoft-cs/cifar10"]),
    ],
)
def test_public_datasets_are_named(source, datasets, tmp_path):
    workdir = finished_run(tmp_path / "run")
    config = quick("resnet", source=source, model={"name": "test_resnet", "pretrained": False})
    write_config(workdir, run.complete(config))
    found = card(tmp_path, workdir)
    assert found.data.datasets == datasets
    assert f'"{source.get("dataset") or source["path"]}"' in found.content
    assert (found.data.base_model, found.data.license) == (None, None)
    assert "started from random weights" in found.content


def test_a_card_without_a_run(tmp_path, caplog):
    found = card(tmp_path, classifier(antialias="blur"))
    assert found.data.tags == ["image-classification", "jaxvision"]
    assert found.data.to_dict()["library_name"] == "jaxvision"
    assert snippets(found.content).keys() == {"jaxvision"}  # timm has no such option
    assert "## Recipe" not in found.content
    assert "states no license, because that of the weights is not known; set license" in caplog.text


def test_a_dry_run_needs_no_token_and_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.main(["push", str(finished_run(tmp_path / "run")), REPO, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("---\n")
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("repo", ["pets", "a/b/c", "some one/pets", "someone/", "../pets", "", "someone/pets.git"])
def test_malformed_names(repo, tmp_path):
    with pytest.raises(UserError, match="expected OWNER/NAME, such as 'someone/flowers'"):
        jaxvision.push_to_hub(tmp_path, repo)


def push_error(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Returns the error of `jaxvision push`, after checking that it is one line with the status 2."""
    assert cli.main(["push", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return line


def test_errors_of_the_hub(hub, tmp_path, monkeypatch, capsys):
    export = save_classifier(tmp_path / "export", classifier())
    assert "may not write to 'others/pets', or there is no user or organization 'others'" in push_error(
        capsys, export, "others/pets"
    )
    assert "must be one of [...], got free" in push_error(capsys, export, REPO, "--license", "free")
    assert hub.repos[REPO]["files"] == {}
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "does not accept the token (Invalid credentials" in push_error(capsys, export, REPO)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.requests.clear()
    assert "got no token of the hub" in push_error(capsys, export, REPO)
    assert not hub.requests
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach the hub" in push_error(capsys, export, REPO)


def test_what_is_not_a_finished_run(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "got the workdir of a run that is not finished" in push_error(capsys, tmp_path / "run", REPO)
    assert "expected the workdir of a finished run or a folder" in push_error(capsys, "resnet50.a1_in1k", REPO)
