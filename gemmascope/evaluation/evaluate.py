"""gs.evaluate: tasks of lm-evaluation-harness on a model, with edits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from gemmascope import prompts
from gemmascope.arguments import as_list, is_list, short_repr, true_or_false, whole_number
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.of_run import all_edits
from gemmascope.errors import EvaluationError, GemmascopeError
from gemmascope.evaluation.result import Evaluation, Measure, Sample
from gemmascope.evaluation.tasks import family_task
from gemmascope.files.paths import user_path
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.packages import requires_package
from gemmascope.prompts.pairs import Pairs

if TYPE_CHECKING:
    from gemmascope.evaluation.harness import HarnessModel

Task = str | Mapping[str, object] | Pairs
Results = dict[str, dict[str, object]]


@computes
def evaluate(
    model: Model | None,
    tasks: Task | Sequence[Task],
    *,
    edits: Sequence[Edit] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | os.PathLike[str] | None = None,
    chat: bool = False,
    generation: Mapping[str, object] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Run tasks of EleutherAI's lm-evaluation-harness on a model, with edits in every run.

    Prompts are built, split into tokens, cut and scored as the harness's own model for transformers does it. Requests of
    unequal length share a pass without padding, and the choices of a question share the run of its context. Needs
    gemmascope[eval].

    Args:
        model: What gs.load returned; None means nano.
        tasks: Names of tasks and groups, such as "arc_easy"; their configurations, as mappings; or families of prompts, such
            as gs.prompts.ioi(100), whose task is to find the answer likelier than the other one. One, or a list.
        edits: As in gs.generate: positions are absolute, negative ones count from the end of a question's context, and a
            token is looked up there. None by default.
        limit: The most questions of each task. None: all.
        num_fewshot: Solved examples in front of each question. None: what the task says.
        include_path: A folder with configurations of tasks (YAML) beside those of the harness.
        chat: Whether prompts are chat messages, in the checkpoint's template. Default False.
        generation: Options that replace those of tasks that generate, such as {"max_gen_toks": 64}.
        seed: Seed of drawn texts and of few-shot examples. Default 0.
        progress: Whether to show progress bars of the runs; lm_eval and datasets show bars of their own. Default True.

    Returns:
        The metrics of every task, and every sample's answers.

    Raises:
        MissingPackageError: lm_eval is not installed.
        EvaluationError: There is no such task, or the harness could not run it.
        SiteError, EditError: An edit does not fit a run.

    Examples:
        >>> result = gs.evaluate(None, gs.prompts.ioi(8), progress=False)  # doctest: +SKIP
        >>> result.value("ioi", "acc")  # doctest: +SKIP
        1.0

    References:
        Biderman et al., "Lessons from the Trenches on Reproducible Evaluation of Language Models" (arXiv 2405.14782).
    """
    model, edits = model_or_nano(model), listed_edits(edits)
    if limit is not None:
        limit = whole_number(limit, "limit", least=1, error=EvaluationError)
    if num_fewshot is not None:
        num_fewshot = whole_number(num_fewshot, "num_fewshot", least=0, error=EvaluationError)
    if generation is not None and not isinstance(generation, Mapping):
        raise EvaluationError(f"generation is a mapping, such as {{'max_gen_toks': 64}}; given {short_repr(generation)}")
    listed = _listed(tasks)
    seed = whole_number(seed, "seed", least=0, most=2**31, error=EvaluationError)
    chat = true_or_false(chat, "chat", error=EvaluationError)
    folder = None if include_path is None else _folder(include_path)
    for edit in all_edits(model, edits):
        edit.require_places(model)
    with requires_package("gs.evaluate", "lm_eval", install="gemmascope[eval]"):
        from gemmascope.evaluation.harness import HarnessModel
    harness = HarnessModel(model, edits, seed=seed, progress=true_or_false(progress, "progress", error=EvaluationError))
    with tempfile.TemporaryDirectory() as scratch:
        configured = [family_task(one, Path(scratch)) if isinstance(one, Pairs) else one for one in listed]
        options = {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "chat": chat,
            "generation": None if generation is None else dict(generation),
            "seed": seed,
        }
        results = _simple_evaluate(harness, configured, folder, options)
    return _evaluation(model, all_edits(model, edits), results)


def _listed(tasks: Task | Sequence[Task]) -> list[Task]:
    one = isinstance(tasks, (str, Mapping, Pairs))
    if not one and not is_list(tasks):
        raise EvaluationError(f"tasks are names, configurations or families of prompts; given {short_repr(tasks)}")
    listed = [tasks] if one else as_list(tasks, "tasks", error=EvaluationError)
    if not listed:
        raise EvaluationError("tasks is an empty list: name one at least")
    if wrong := [task for task in listed if not isinstance(task, (str, Mapping, Pairs))]:
        raise EvaluationError(f"a task is a name, a configuration or a family of prompts; given {short_repr(wrong[0])}")
    if empty := [task for task in listed if isinstance(task, Pairs) and not task]:
        raise EvaluationError(f"there is nothing to ask: {empty[0]!r} has no pairs")
    names = [_name_of(task) for task in listed]
    if twice := [name for name in names if name is not None and names.count(name) > 1]:
        raise EvaluationError(f"tasks names {twice[0]!r} twice")
    return cast("list[Task]", listed)


def _name_of(task: object) -> object:
    return task.family if isinstance(task, Pairs) else task.get("task") if isinstance(task, Mapping) else task


def _folder(path: str | os.PathLike[str]) -> str:
    folder = user_path(path, error=EvaluationError, what="tasks")
    if not folder.is_dir():
        raise EvaluationError(f"include_path is a folder with configurations of tasks; there is none at {folder}")
    return str(folder)


def _simple_evaluate(
    harness: HarnessModel, tasks: Sequence[object], folder: str | None, options: Mapping[str, object]
) -> Results:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    named = any(isinstance(task, str) for task in tasks)  # the index of all tasks takes seconds
    manager = TaskManager(include_path=folder, include_defaults=named)
    known = set(manager.all_tasks)
    if unknown := [
        task for task in tasks if isinstance(task, str) and task not in known and not manager.match_tasks([task])
    ]:
        raise EvaluationError(
            f"lm_eval {version('lm_eval')} knows no task {unknown[0]!r}: `lm_eval ls tasks` lists those it knows; your own "
            f"are found with include_path={_family_hint(unknown[0])}"
        )
    try:
        results = simple_evaluate(
            harness, tasks=[dict(task) if isinstance(task, Mapping) else task for task in tasks], task_manager=manager,
            limit=options["limit"], num_fewshot=options["num_fewshot"], apply_chat_template=options["chat"],
            gen_kwargs=options["generation"], bootstrap_iters=1000,
            random_seed=options["seed"], numpy_random_seed=options["seed"], torch_random_seed=options["seed"],
            fewshot_random_seed=options["seed"],
        )  # fmt: skip
    except GemmascopeError:
        raise
    except OSError as error:
        raise EvaluationError(
            f"a task's data could not be read: {error}. They come from the hub unless the task names files of yours"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # lm_eval checks few fields
        raise EvaluationError(
            f"lm_eval {version('lm_eval')} could not run the tasks: {type(error).__name__}: {error}. A field of a task's "
            "configuration may be missing or wrong"
        ) from error
    return cast("Results", results)


def _family_hint(name: str) -> str:
    is_family = name in prompts.__all__ and name.islower()
    return f"; a family of prompts is given in Python, tasks=gs.prompts.{name}(100)" if is_family else ""


def _evaluation(model: Model, edits: Sequence[Edit], results: Results) -> Evaluation:
    measures = []
    for task, metrics in results["results"].items():
        n = _n_samples(task, results)
        for key, value in cast("Mapping[str, object]", metrics).items():
            name, _, kind = key.partition(",")
            if name.endswith("_stderr") or not _is_number(value) or not kind:
                continue
            stderr = cast("Mapping[str, object]", metrics).get(f"{name}_stderr,{kind}")
            shown = name if kind == "none" else f"{name} ({kind})"
            measures.append(Measure(task, shown, float(value), float(stderr) if _is_number(stderr) else None, n))
    samples = {
        task: [_sample(one) for one in cast("Sequence[Mapping[str, object]]", of_task)]
        for task, of_task in results.get("samples", {}).items()
    }
    versions = {"lm_eval": version("lm_eval"), **{task: str(one) for task, one in results.get("versions", {}).items()}}
    return Evaluation(model.name, tuple(map(repr, edits)), tuple(measures), versions, samples)


def _n_samples(task: str, results: Results) -> int:
    """How many questions a task has; a group has those of its tasks."""
    counts = cast("Mapping[str, Mapping[str, int]]", results.get("n-samples", {}))
    if task in counts:
        return counts[task]["effective"]
    children = cast("Sequence[str]", results.get("group_subtasks", {}).get(task, ()))
    return sum(_n_samples(child, results) for child in children)


def _sample(given: Mapping[str, object]) -> Sample:
    asked = cast("Mapping[str, Mapping[str, object]]", given["arguments"])
    pairs = [tuple(one.values()) for one in asked.values()] if isinstance(asked, Mapping) else [tuple(one) for one in asked]
    answers = cast("Sequence[object]", given["filtered_resps"])
    metrics = ((name, given[name]) for name in cast("Sequence[str]", given["metrics"]))
    numbers = {name: float(value) for name, value in metrics if _is_number(value)}
    return Sample(
        int(cast("int", given["doc_id"])), str(given["filter"]), str(given["target"]), tuple(str(pair[0]) for pair in pairs),
        tuple(str(pair[1]) if len(pair) > 1 else "" for pair in pairs), tuple(answers), numbers,
    )  # fmt: skip


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real)  # numpy's too
