import json
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_index.errors import (
    CorruptFile,
    FailedFunction,
    ForensicsError,
    MissingFile,
    MissingPackage,
    Offline,
    UnknownTask,
    UnusableTask,
)
from data_index.evaluations import read_result_file, unit_of_metric
from forensics.harness_tasks import HarnessTask
from tests.forensics.harnessed import write_model, write_tasks
from tests.probes.tiny_models import tiny_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    model: Path
    tasks: Path

    def task(self, name: str, **settings: Any) -> HarnessTask:
        chosen = {"tokenizer_file": self.model / "tokenizer.json", "eos_token_id": 0, "batch_size": 4} | settings
        return HarnessTask(task=str(self.tasks / f"{name}.yaml"), **chosen)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One model and one folder of tasks; the datasets library keeps what it read in a folder of the test's."""
    import datasets

    folder = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield Place(model=write_model(folder / "model"), tasks=write_tasks(folder / "tasks"))


@pytest.fixture
def own(place: Place, tmp_path: Path) -> Place:
    """A copy of the tasks that a test may damage."""
    return replace(place, tasks=Path(shutil.copytree(place.tasks, tmp_path / "tasks")))


@pytest.fixture(scope="module")
def model(place: Place) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place.model).eval()


def by_hand(place: Place, name: str, patch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The harness's own answer: it loads model and tokenizer itself, started in the folder of the tasks."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    patch.setattr("lm_eval.evaluator.add_env_info", dict.copy)  # it asks pip and the compiler, for half a second
    patch.chdir(place.tasks)
    patch.setenv("DISABLE_MULTIPROC", "1")
    tasks = TaskManager(include_path=str(place.tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={place.model}",
        tasks=[name],
        task_manager=tasks,
        device="cpu",
        **{"batch_size": 4, "bootstrap_iters": 1000} | settings,
    )


RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "choices": ("which_word", {}, {}),
    "choices with examples": (
        "which_word",
        {"num_fewshot": 2, "seed": 7},
        {"num_fewshot": 2} | dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"), 7),
    ),
    "last words": ("last_word", {}, {}),
    "a third of the last words": ("last_word", {"limit": 0.3, "bootstrap_iters": 200}, {"limit": 0.3}),
    "whole texts": ("whole_text", {}, {}),
    "words drawn as the task is read": ("drawn_word", {}, {}),
    "written text": ("next_words", {}, {}),
    "a group": ("all_words", {}, {}),
}
RUNS["choices with examples"][2]["fewshot_random_seed"] = 7
RUNS["a third of the last words"][2]["bootstrap_iters"] = 200


@pytest.mark.parametrize(("name", "ours", "theirs"), RUNS.values(), ids=list(RUNS))
def test_numbers_are_those_of_the_harness_run_by_hand(
    place: Place,
    model: Any,
    name: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit, under the names that its result file is read with; and the same again on the next checkpoint."""
    random.seed(31), np.random.seed(32), torch.manual_seed(33)
    found = place.task(name, **ours).measure_model(model)
    answer = by_hand(place, name, monkeypatch, **theirs)
    path = tmp_path / "model_step5.json"
    path.write_text(json.dumps({"results": answer["results"]}))
    shots = {task: f", {n}-shot" if n else "" for task, n in answer["n-shot"].items()}
    expected = {
        f"{'' if row.task == name else row.task + ' '}{row.metric}{shots[row.task]}": (row.value, row.stderr)
        for row in read_result_file(path)
        if row.metric != "sample_len"
    }

    assert {one.metric: one.value for one in found} == {metric: value for metric, (value, _) in expected.items()}
    for one in found:
        value, stderr = expected[one.metric]
        reach = None if stderr is None else 1.96 * stderr
        assert (one.low, one.high) == ((None, None) if reach is None else (value - reach, value + reach))
        assert one.unit == unit_of_metric(one.metric.split(" ")[-1] if name == "all_words" else one.metric)
    assert found
    assert place.task(name, **ours).measure_model(model) == found


def test_the_answers_tell_models_apart(place: Place, model: Any) -> None:
    """Numbers that were the same for every model would pass all of the above."""
    other = tiny_model("llama", "forensics", seed=1)
    for name in ("which_word", "whole_text", "next_words"):
        probe = place.task(name)
        assert probe.measure_model(other) != probe.measure_model(model)


@pytest.mark.parametrize("name", ["last_word", "next_words"])
def test_models_as_replay_builds_them_answer_alike_and_stay_as_they_were(place: Place, model: Any, name: str) -> None:
    """In training mode, with attention of their own, and in the middle of someone's random numbers."""
    replayed = tiny_model("llama", "forensics", seed=1).train()
    replayed.load_state_dict(model.state_dict())
    random.seed(31), np.random.seed(32), torch.manual_seed(33)
    drawn = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    before = (replayed.config.to_dict(), replayed.config._attn_implementation, replayed.generation_config.to_dict())
    found = place.task(name).measure_model(replayed)

    # Its attention adds in another order.
    expected = place.task(name).measure_model(model)
    assert [one.value for one in found] == pytest.approx([one.value for one in expected], rel=1e-5)
    assert before == (
        replayed.config.to_dict(),
        replayed.config._attn_implementation,
        replayed.generation_config.to_dict(),
    )
    assert all(module.training and not module._forward_hooks for module in replayed.modules())
    assert all(torch.equal(replayed.state_dict()[key], value) for key, value in model.state_dict().items())
    assert drawn == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_nothing_is_printed_but_errors(
    own: Place, model: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Rows go to our stdout, progress to our stderr."""
    edited("words.py", "    def cut", "    import logging\n    logging.getLogger('x').warning('advice')\n    def cut")(
        own.tasks
    )
    own.task("all_words").measure_model(model)
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])

    edited("words.py", "getLogger('x').warning", "getLogger('lm_eval.x').error")(own.tasks)
    own.task("all_words").measure_model(model)
    printed = capfd.readouterr()
    assert printed.out == "" and set(printed.err.splitlines()) == {"advice"}


def test_a_model_that_computes_nan_has_no_score(place: Place, model: Any) -> None:
    """The harness would take the first of the choices for its answer."""
    broken = tiny_model("llama", "forensics", seed=1)
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    for name in ("which_word", "next_words"):
        with pytest.raises(FloatingPointError, match="the model computes NaN"):
            place.task(name).measure_model(broken)
        assert not broken._forward_hooks


def test_a_task_travels_as_names_and_settings(own: Place, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a process in another folder; its data are found beside it."""
    monkeypatch.chdir(own.tasks)
    probe = HarnessTask(task="which_word.yaml", tokenizer_file=own.model / "tokenizer.json", eos_token_id=0)
    sent = pickle.dumps(probe.prepared())
    monkeypatch.chdir("/")

    assert len(sent) < 1000
    assert pickle.loads(sent).measure_model(model) == probe.measure_model(model)
    assert probe.name == "which_word" and own.task("all_words").name == "all_words"


def test_settings_name_every_file_that_the_numbers_stand_on(own: Place, tmp_path: Path) -> None:
    """Kept numbers of an edited task, or edited data, are not taken for its own; a moved folder is the same."""
    probe = own.task("all_words")
    first = json.loads(json.dumps(probe.settings()))
    named = {"all_words.yaml", "which_word.yaml", "last_word.yaml", "common.yaml", "words.py"}

    assert set(first["files"]) == named | {"choices.jsonl", "data/examples.jsonl", "texts.jsonl"}
    moved = replace(own, tasks=Path(shutil.copytree(own.tasks, tmp_path / "moved")))
    assert moved.task("all_words").settings() == first
    for name in first["files"]:
        before = (moved.tasks / name).read_bytes()
        (moved.tasks / name).write_bytes(before + b"\n")
        assert moved.task("all_words").settings()["files"] != first["files"]
        (moved.tasks / name).write_bytes(before)
    changes: list[dict[str, Any]] = [{"num_fewshot": 1}, {"limit": 5}, {"seed": 1}, {"eos_token_id": 1}]
    assert len({json.dumps(own.task("all_words", **change).settings()) for change in [*changes, {}]}) == 5


def test_an_edited_task_is_measured_as_it_is_now(own: Place, model: Any) -> None:
    probe = own.task("last_word")
    before = probe.measure_model(model)
    lines = (own.tasks / "texts.jsonl").read_text().splitlines()
    (own.tasks / "texts.jsonl").write_text("\n".join(lines[:20]) + "\n")
    after = probe.measure_model(model)

    assert after != before
    assert after == replace(probe, limit=20).measure_model(model)


def test_examples_asked_of_one_task_do_not_stay_with_the_next(place: Place, model: Any) -> None:
    """Tasks are loaded once a process, and the harness writes the number of examples into them."""
    plain = place.task("which_word").measure_model(model)
    assert [one.metric for one in place.task("which_word", num_fewshot=1).measure_model(model)] == [
        "acc, 1-shot",
        "acc_norm, 1-shot",
    ]
    assert place.task("which_word").measure_model(model) == plain


def test_examples_that_a_task_names_are_its_own_unless_others_are_asked_for(own: Place, model: Any) -> None:
    edited("which_word.yaml", "training_split", "num_fewshot: 3\ntraining_split")(own.tasks)
    for asked, named in ((None, "acc, 3-shot"), (1, "acc, 1-shot"), (0, "acc")):
        assert own.task("which_word", num_fewshot=asked).measure_model(model)[0].metric == named


def test_what_a_file_says_wins_over_what_it_includes(own: Place, model: Any) -> None:
    """Of one that has its own data, as a pattern, the included ones are not looked for."""
    edited("common.yaml", "texts.jsonl", "absent.jsonl")(own.tasks)
    assert own.task("whole_text").measure_model(model)
    with pytest.raises(MissingFile, match="names the data absent.jsonl"):
        own.task("last_word").prepared()


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


BROKEN: dict[str, tuple[str, Callable[[Path], None], type[ForensicsError], str]] = {
    "no YAML": ("which_word", edited("which_word.yaml", "{test:", "{[test:"), UnusableTask, "no YAML that can be read"),
    "no task": ("which_word", edited("which_word.yaml", "task: which", "name: which"), UnusableTask, "names neither a"),
    "no file": ("which_word", lambda folder: (folder / "which_word.yaml").unlink(), MissingFile, "there is no task f"),
    "no data": (
        "which_word",
        lambda folder: (folder / "choices.jsonl").unlink(),
        MissingFile,
        "names the data choices.jsonl, which are neither beside it nor here",
    ),
    "no include": ("last_word", lambda folder: (folder / "common.yaml").unlink(), MissingFile, "common.yaml"),
    "a circle": (
        "last_word",
        edited("common.yaml", "dataset_path", "include: last_word.yaml\ndataset_path"),
        UnusableTask,
        "in a circle",
    ),
    "no function": ("last_word", edited("words.py", "def without_last", "def other"), UnusableTask, "without_last"),
    "no package": (
        "last_word",
        edited("words.py", "def w", "import nowhere\ndef w"),
        MissingPackage,
        "package nowhere",
    ),
    "unknown settings": (
        "which_word",
        edited("which_word.yaml", "test_split", "tests_split"),
        UnusableTask,
        "cannot be loaded",
    ),
    "no such split": ("last_word", edited("common.yaml", "test_split: test", "test_split: dev"), UnusableTask, "'dev'"),
    "unknown member": (
        "all_words",
        edited("last_word.yaml", "task: last_word", "task: x"),
        UnknownTask,
        "the task last_word, w",
    ),
}


@pytest.mark.parametrize(("name", "damage", "error", "said"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_task_is_found_before_a_checkpoint_is_read(
    own: Place,
    name: str,
    damage: Callable[[Path], None],
    error: type[ForensicsError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = SimpleNamespace(task_index={})
    monkeypatch.setattr("forensics.harness_loading.installed_tasks", lambda: installed)
    damage(own.tasks)
    with pytest.raises(error, match=said):
        own.task(name).prepared()


def test_code_of_a_task_that_fails_on_a_model_is_said(own: Place, model: Any) -> None:
    edited("next_words.yaml", "max_gen_toks: 6", "max_gen_toks: 600")(own.tasks)
    with pytest.raises(
        FailedFunction, match="next_words failed: AssertionError.*Invalid configuration: requested max tokens"
    ):
        own.task("next_words").prepared().measure_model(model)
    assert not model._forward_hooks


def test_what_cannot_be_measured_as_asked_is_said(own: Place) -> None:
    edited("which_word.yaml", "training_split", "num_fewshot: 0\ntraining_split")(own.tasks)
    with pytest.raises(UnusableTask, match="which_word is measured with 0 examples, whatever is asked"):
        own.task("which_word", num_fewshot=3).prepared()
    with pytest.raises(UnusableTask, match="next_words needs to know the token that ends a text"):
        own.task("next_words", eos_token_id=None, bos_token_id=0).prepared()
    own.task("last_word", eos_token_id=None, bos_token_id=0).prepared()
    with pytest.raises(UnusableTask, match="last_word needs to know the token that ends a text"):
        own.task("last_word", eos_token_id=None).prepared()
    with pytest.raises(MissingFile, match="there is no tokenizer .*none.json"):
        own.task("last_word", tokenizer_file=own.tasks / "none.json").prepared()
    with pytest.raises(CorruptFile, match="words.py is no tokenizer.json"):
        own.task("last_word", tokenizer_file=own.tasks / "words.py").prepared()
    with pytest.raises(CorruptFile, match="has no token for one of .*'eos_token': 9999"):
        own.task("last_word", eos_token_id=9999).prepared()


def test_without_the_extra_it_is_said_how_to_install_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackage, match=r"pip install 'checkpoint-forensics\[eval\]'"):
        place.task("which_word", seed=3).prepared()


def test_data_of_a_server_are_offline_where_they_may_not_be_fetched(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    edited("which_word.yaml", "dataset_path: json", "dataset_path: someone/something")(own.tasks)
    with pytest.raises(Offline, match="which_word.yaml are not kept here .* HF_HUB_OFFLINE forbids to fetch it"):
        own.task("which_word").prepared()


@pytest.fixture
def installed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own tasks are taken from a folder of 4: reading its 14,000 takes seconds."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place.tasks), include_defaults=False)
    monkeypatch.setattr("forensics.harness_loading.installed_tasks", lambda: manager)


@pytest.mark.usefixtures("installed")
def test_an_unknown_task_is_answered_with_names_near_it(place: Place) -> None:
    with pytest.raises(UnknownTask, match=r"lm-eval [\d.]+ has no task 'wich_word'; near it are which_word"):
        replace(place.task("which_word"), task="wich_word").prepared()


@pytest.mark.usefixtures("installed")
def test_tasks_of_the_harness_are_measured_by_name(
    place: Place, own: Place, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, as a group, and as members of a group of the user's."""
    monkeypatch.chdir(place.tasks)
    group = place.task("all_words").measure_model(model)
    for name in ("which_word", "last_word", "choices.jsonl"):
        (own.tasks / f"{name}.yaml").unlink(missing_ok=True)
    assert own.task("all_words").measure_model(model) == group
    for name in ("which_word", "all_words"):
        by_name = replace(place.task(name), task=name)
        assert by_name.measure_model(model) == place.task(name).measure_model(model)
        assert by_name.settings() == place.task(name).settings() | {"files": None}
