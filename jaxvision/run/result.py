"""The result of a run: choose a checkpoint, test it, export its model and write the report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from flax import nnx
from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.checkpoint import Checkpoints, ReadInOneProcessError
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.errors import UserError
from jaxvision.eval.metrics import Evaluation
from jaxvision.eval.page import describe, notes_on, write_mistakes
from jaxvision.models.base import Model
from jaxvision.parallel import distributed
from jaxvision.report import wording
from jaxvision.run.context import RunContext
from jaxvision.run.loop import TrainingLoop
from jaxvision.run.teacher import Teacher
from jaxvision.run.workdir import result_files
from jaxvision.train import distill, partial
from jaxvision.train.loss import probabilities_of
from jaxvision.train.state import Cast, evaluated_leaves, evaluated_state, gather_model


@dataclass
class Chosen:
    """The model that becomes the result.

    Attributes:
      state: of the model, on the devices, from `jaxvision.train.state.evaluated_state`; None once it is exported.
      step: number of steps done.
      evaluation: of this state on the split that is evaluated during training; None if it is not known here.
    """

    state: Any
    step: int
    evaluation: Evaluation | None

    def take_state(self) -> nnx.State:
        """Returns the state and releases it, so that it is freed when the caller releases it."""
        state, self.state = self.state, None
        return state


def choose(run: RunContext, loop: TrainingLoop) -> Chosen:
    """Returns the best model by the validation data. Without validation data returns the last one.

    Args:
      run: the context.
      loop: when it has ended. Its state is taken, and what is not exported is released.

    Raises:
      UserError: the last checkpoint could not be written, or neither the best nor the last can be read.
    """
    checkpoints, abstract, shardings = loop.checkpoints, run.program.abstract, run.program.shardings
    with run.clock.phase("checkpoint"):
        checkpoints.wait()
    run.preemption.nothing_to_lose()
    chosen = Chosen(evaluated_state(loop.take_state()), loop.step, loop.evaluation)
    reason = f"the best {run.decisive_metric} on the validation data"
    if run.watched_split != "validation":  # choosing by the test data would make its result too good
        reason = "the last: no validation data to choose by"
    elif run.config.checkpoint.best is None:
        reason = "the last: checkpoint.best is None"
    elif (best := checkpoints.best_step()) is None:
        reason = f"the last: no evaluation has a finite {run.decisive_metric}"
    elif best != chosen.step:
        del chosen  # first, because the devices may have no room for both
        try:
            chosen = restore_chosen(abstract, shardings, checkpoints, "best")
        except ReadInOneProcessError:  # the other processes do not read the last one
            raise
        except UserError as e:  # the last one is worth keeping, even if the best one is damaged
            run.console.warn(str(e))
            chosen = restore_chosen(abstract, shardings, checkpoints, loop.step)
            reason = "the last: the best cannot be read"
    averaged = " with its averaged weights" if run.options.ema_decay else ""
    run.console.note(f"exporting the model of step {chosen.step:,}{averaged}, {reason}")
    for text in _against_the_probe(run, chosen.step):
        run.console.note(text)
    return chosen


def restore_chosen(abstract: nnx.State, shardings: Any, checkpoints: Checkpoints, step: int | str) -> Chosen:
    """Returns the model of a checkpoint. The optimizer is not read, nor weights that have an average.

    Args:
      abstract: shapes of the training state.
      shardings: of its leaves.
      checkpoints: of the run.
      step: as for `Checkpoints.restore`.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    restored = checkpoints.restore(evaluated_leaves(abstract), evaluated_leaves(shardings), step=step, subset=True)
    assert restored is not None
    return Chosen(evaluated_state(restored.state), restored.step, evaluation=None)


def test(run: RunContext, chosen: Chosen) -> Evaluation:
    """Returns the evaluation of the chosen model on the test data, or without any on the validation data."""
    if chosen.evaluation is not None and run.final_split == run.watched_split:
        return chosen.evaluation
    with run.clock.phase("evaluation"):
        return run.evaluate(chosen.state, run.final_split)


def gather_classifier(chosen: Chosen, *, graph: nnx.GraphDef, abstract: nnx.State, **facts: Any) -> Classifier:
    """Returns the chosen model with its classes and its transform, on the devices of each process.

    All processes must call it.

    Args:
      chosen: its state is released when the model has been gathered.
      graph: structure of the model.
      abstract: shapes of the model.
      **facts: the other fields of the `Classifier`.
    """
    model = cast(Model, Cast.to(abstract)(gather_model(graph, chosen.take_state())))
    return Classifier(partial.merge_lora(distill.without_projection(model)), **facts)


def export(run: RunContext, chosen: Chosen, result: Evaluation) -> None:
    """Writes the model, the report and the mistakes. Process 0 writes; all processes take part in gathering the model.

    Args:
      run: the context.
      chosen: its state is released when the model has been gathered.
      result: of `test`.

    Raises:
      UserError: a file cannot be written.
    """
    program = run.program
    classifier = gather_classifier(
        chosen,
        graph=program.model_graph,
        abstract=program.abstract["model"],
        classes=run.classes,
        preprocess=program.preprocess,
        probabilities=probabilities_of(run.config.loss.kind),
    )
    if not distributed.is_main():
        return
    images = run.data[run.final_split]
    with run.clock.phase("report"):
        save_classifier(run.workdir / "export", classifier)
        page = describe(
            classifier,
            result,
            images,
            title=run.config.model.name,
            subtitle=f"{run.final_split} data of {run.config.source.name}, step {chosen.step:,} of {run.steps:,}",
            notes=[
                *_against_the_probe(run, chosen.step),
                *_choice_note(run),
                *notes_on(run.data),
                *_teacher_note(program.teacher),
                *_loss_note(run.config),
            ],
            config=run.config.to_dict(),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        )
    report.write_report(run.workdir, replace(page, timing=run.clock.timing()))
    write_mistakes(run.workdir, run.classes, result, images)
    run.console.finish(
        final=result.headline() | {"count": result.count},
        name=run.final_split,
        timing=run.clock.timing(),
        files=result_files(run.workdir),
    )


def _against_the_probe(run: RunContext, step: int) -> list[str]:
    """Returns a line that compares the exported model with the probe that the run started with, if there is a choice.

    Args:
      run: the context.
      step: of the exported model.
    """
    if run.options.head_init is None or run.checkpoint_options["best"] is None:
        return []
    metric = run.decisive_metric
    lines = [line for line in report.read_metrics(run.workdir) if line["split"] == run.watched_split]
    values = {line["step"]: line[metric] for line in lines if metric in line}
    if not {0, step} <= values.keys():  # a process that does not see the file of process 0
        return []
    before, after = (wording.value(metric, values[i]) for i in (0, step))
    if step == 0:
        return [f"fine-tuning did not improve on the probe (step 0, {before} {metric}): the probe is exported"]
    # If the best checkpoint cannot be read, the last one is exported, which may be worse than the probe.
    sign = -1 if run.is_lower_better else 1
    is_better = values[step] is not None and (values[0] is None or sign * values[step] > sign * values[0])
    verdict = "improved" if is_better else "did not improve"
    return [f"fine-tuning {verdict} on the probe (step 0): {metric} {before} → {after}"]


def _choice_note(run: RunContext) -> list[str]:
    """Returns a note if the result was measured on the data by which the checkpoint was chosen."""
    if run.final_split != "validation" or run.config.checkpoint.best is None:
        return []
    return [
        f"The checkpoint was chosen by its {run.decisive_metric} on these images, so the result is optimistic. Add "
        "test data to measure it on other images."
    ]


def _teacher_note(teacher: Teacher | None) -> list[str]:
    """Returns a note that names the teacher, if there is one."""
    if teacher is None:
        return []
    how = teacher.distillation
    temperature = f", temperature {how.temperature:g}" if how.kind == "soft" else ""
    return [f"The model was distilled from {teacher.name} ({how.kind}, weight {how.weight:g}{temperature})."]


def _loss_note(config: ConfigDict) -> list[str]:
    """Returns a note if the training loss is not comparable with the loss of an evaluation."""
    strengths = {
        "label smoothing": config.loss.label_smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
        "distillation": config.teacher.name or config.teacher.checkpoint_path,
    }
    used = [name for name, strength in strengths.items() if strength]
    if not used:
        return []
    return [f"The training loss includes {', '.join(used)}, the evaluation loss does not, so they are not comparable."]
