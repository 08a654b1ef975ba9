"""A GPT-NeoX run trained here, by the rules of v1.0 written out again in plain torch, is replayed bit for bit.

Nothing of `replay` or of `data_index.orders` takes part in the training: the order, the learning rate, the groups and
the skipped updates are computed a second time below, as the trainer's documentation has them.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import GPTNeoXForCausalLM

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.reproduction import replay
from tests.neox_v1 import learning_rate, new_model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "neox"
TOY, TOY_B = "toy_text_document", "toyb_text_document"
# The toy sets' own ids reach 50114; folded, they leave the order as it is and the model tiny.
VOCABULARY = 384
LENGTH, STEPS, ROWS, SAVED = 32, 20, 8, (0, 1, 9, 20)
RATE, MIN_RATE = 0.006, 0.0006

COMMON = """
# The keys of Pythia's published files, sizes of a toy.
{
  "pipe-parallel-size": 1, "model-parallel-size": 1,
  "num-layers": 2, "hidden-size": 16, "num-attention-heads": 2, "seq-length": 32, "max-position-embeddings": 32,
  "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true, "gpt-j-residual": true,
  "output-layer-parallelism": "column", "padded_vocab_size": 384,
  "attention-dropout": 0, "hidden-dropout": 0,
  "optimizer": {"type": "Adam", "params": {"lr": 0.006, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.0006, "lr-decay-style": "cosine", "warmup": 0.1, "train-iters": 20, "lr-decay-iters": 20,
  "gradient_clipping": 1.0, "weight-decay": 0.1, "data-impl": "mmap",
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What differs between the runs below.

    Attributes:
        config: the rest of the configuration file, closing its brace.
        rows: token ids as consumed, [step, row, token].
        rows_at_once: of a micro-batch. skipped: steps whose loss scale overflowed.
        save: writes a checkpoint.
    """

    config: str
    rows: Callable[[], np.ndarray]
    rows_at_once: int = ROWS
    skipped: Sequence[int] = field(default_factory=tuple)
    save: Callable[[GPTNeoXForCausalLM, torch.optim.Optimizer, Path, int, int], None] = field(
        default_factory=lambda: save_for_transformers
    )


# --- the order, again ------------------------------------------------------------------------------------------------


def documents_of(name: str) -> list[np.ndarray]:
    raw = (FIXTURES / f"{name}.idx").read_bytes()
    count = int(np.frombuffer(raw, np.uint64, 1, 18)[0])
    sizes = np.frombuffer(raw, np.int32, count, 34)
    starts = np.frombuffer(raw, np.int64, count, 34 + 4 * count) // 2
    tokens = np.fromfile(FIXTURES / f"{name}.bin", dtype=np.uint16)
    return [tokens[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def training_rows(documents: Sequence[np.ndarray], wanted: int, seed: int) -> np.ndarray:
    """Rows of one dataset in training order: documents shuffled over all epochs at once, cut, shuffled again."""
    total, epochs = sum(map(len, documents)), 1
    while (epochs * total - 1) // LENGTH < wanted:
        epochs += 1
    random = np.random.RandomState(seed)
    order = np.tile(np.arange(len(documents), dtype=np.int32), epochs)
    random.shuffle(order)
    flat = np.concatenate([documents[number] for number in order])
    samples = np.arange((epochs * total - 1) // LENGTH)
    random.shuffle(samples)
    return np.stack([flat[s * LENGTH : (s + 1) * LENGTH + 1] for s in samples])


def one_dataset() -> np.ndarray:
    """Half a percent more rows are asked for than the steps need, as the trainer does with train-data-paths."""
    rows = training_rows(documents_of(TOY), math.ceil(STEPS * ROWS * 1.005), 1234)
    return rows[: STEPS * ROWS].reshape(STEPS, ROWS, LENGTH + 1)


def a_split_of_one() -> np.ndarray:
    """`data-path` with `split`: the first 90 % of the documents, and no half percent more."""
    documents = documents_of(TOY)
    rows = training_rows(documents[: round(0.9 * len(documents))], STEPS * ROWS, 7)
    return rows[: STEPS * ROWS].reshape(STEPS, ROWS, LENGTH + 1)


def two_datasets() -> np.ndarray:
    """A blend: each row from the set that lies furthest behind its weight."""
    weights, num = [0.7, 0.3], STEPS * ROWS
    sets = [
        training_rows(documents_of(name), math.ceil(num * weight * 1.005), 1234)
        for name, weight in zip((TOY, TOY_B), weights, strict=True)
    ]
    counts, rows = [0, 0], []
    for position in range(num):
        behind = [weight * max(position, 1) - count for weight, count in zip(weights, counts, strict=True)]
        chosen = behind.index(max(behind))
        rows.append(sets[chosen][counts[chosen]])
        counts[chosen] += 1
    return np.stack(rows).reshape(STEPS, ROWS, LENGTH + 1)


# --- the trainer, again ----------------------------------------------------------------------------------------------


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Biases and layer norms without weight decay, all else with it, module by module."""
    decayed: list[torch.Tensor] = []
    exempt: list[torch.Tensor] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_exempt = isinstance(module, torch.nn.LayerNorm) or name == "bias"
            (exempt if is_exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]


def save_for_transformers(
    model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer, folder: Path, step: int, updates: int
) -> None:
    model.save_pretrained(folder / f"step{step}")
    moments = {
        f"{moment}.{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / f"step{step}" / "optimizer.safetensors")


def save_as_the_trainer(
    model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer, folder: Path, step: int, updates: int
) -> None:
    """One rank, fp32: a file for each layer, and the whole optimizer in the main file."""
    place = folder / f"global_step{step}"
    place.mkdir()
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        theirs = name.removeprefix("gpt_neox.").replace("layers.", "", 1)
        number, rest = theirs.split(".", 1)
        if number.isdecimal():
            layers.setdefault(int(number) + 2, {})[rest] = parameter.detach()
        else:
            at, kind = {
                "embed_in": (0, "word_embeddings"),
                "final_layer_norm": (5, "norm"),
                "lm_head": (6, "final_linear"),
            }[number]
            layers.setdefault(at, {})[f"{kind}.{rest}"] = parameter.detach()
    for number, state in layers.items():
        torch.save(state, place / f"layer_{number:02d}-model_00-model_states.pt")
    state = optimizer.state_dict()
    main = {
        "module": None,
        "optimizer": {
            "state": {
                number: {name: value for name, value in moments.items() if name != "step"}
                for number, moments in state["state"].items()
            },
            "param_groups": [{"params": group["params"], "step": updates} for group in state["param_groups"]],
        },
        "lr_scheduler": {"num_iters": updates},
        "skipped_steps": step - updates,
        "iteration": step,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "args": {"num_layers": 2, "padded_vocab_size": VOCABULARY, "model_parallel_size": 1},
    }
    torch.save(main, place / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step999")


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_run(training: Training, folder: Path) -> None:
    """Train, and leave behind what such a run leaves: its configuration, its log, its checkpoints, its data."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "toy.yml").write_text(COMMON + training.config)
    for name in (TOY, TOY_B):
        (np.fromfile(FIXTURES / f"{name}.bin", dtype=np.uint16) % VOCABULARY).tofile(folder / f"{name}.bin")
        (folder / f"{name}.idx").write_bytes((FIXTURES / f"{name}.idx").read_bytes())
    torch.manual_seed(5)
    model = new_model(vocabulary=VOCABULARY, length=LENGTH, hidden=16, heads=2)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    rows = torch.from_numpy(training.rows().astype(np.int64) % VOCABULARY)
    training.save(model, optimizer, folder, 0, 0)
    lines, updates = [], 0
    for step in range(1, STEPS + 1):
        loss = torch.zeros([])
        parts = rows[step - 1].split(training.rows_at_once)
        for part in parts:
            logits = model(input_ids=part[:, :-1]).logits.float()
            mean = F.cross_entropy(logits.reshape(-1, VOCABULARY), part[:, 1:].reshape(-1)) / len(parts)
            mean.backward()
            loss += mean.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = learning_rate(updates, steps=STEPS, rate=RATE, min_rate=MIN_RATE)
        overflowed = step in training.skipped
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not overflowed:
            optimizer.step()
            updates += 1
        optimizer.zero_grad()
        numbers = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
        exact = {name: value.hex() for name, value in numbers.items()}
        lines.append(json.dumps({"step": step, **numbers, "skipped": int(overflowed), "hex": exact}))
        if step in SAVED:
            training.save(model, optimizer, folder, step, updates)
    (folder / "metrics.jsonl").write_text("\n".join(lines))


RUNS = {
    "pythia": Training(
        config='"train-data-paths": ["toy_text_document"], "train-data-weights": [1.0], "train_batch_size": 8}',
        rows=one_dataset,
    ),
    "micro_batches": Training(
        config="""
        "train-data-paths": ["toy_text_document", "toyb_text_document"], "train-data-weights": [0.7, 0.3],
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "global_num_gpus": 1}""",
        rows=two_datasets,
        rows_at_once=2,
    ),
    "skips": Training(
        config='"data-path": "toy_text_document", "split": "90,5,5", "seed": 7, "train_batch_size": 8}',
        rows=a_split_of_one,
        skipped=(1, 2, 9, 16, 17, 20),
    ),
    "skips_in_micro_batches": Training(
        config="""
        "train-data-paths": ["toy_text_document"], "train-data-weights": [1.0],
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gas": 2}""",
        rows=one_dataset,
        rows_at_once=4,
        skipped=(3, 4, 5),
    ),
    "saved_by_the_trainer": Training(
        config='"data-path": "toy_text_document", "split": "90,5,5", "seed": 7, "train_batch_size": 8}',
        rows=a_split_of_one,
        skipped=(2, 9, 10),
        save=save_as_the_trainer,
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all runs, trained."""
    folder = tmp_path_factory.mktemp("neox")
    with one_thread():
        for name, training in RUNS.items():
            write_run(training, folder / name)
    return folder


@pytest.fixture(scope="module")
def added(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    for name in RUNS:
        add(runs / name, workspace=workspace)
    return workspace


def test_the_order_written_again_is_the_one_that_upstream_served() -> None:
    assert np.array_equal(one_dataset(), np.load(FIXTURES / "single_1epoch_seed1234.batches.npy"))


@pytest.mark.parametrize("name", RUNS)
def test_every_range_between_checkpoints_is_r0(name: str, added: Workspace) -> None:
    for first, last in combinations(SAVED, 2):
        report = replay(name, f"{first}:{last}", workspace=added, device="cpu")

        assert (report.grade, report.first_divergent_step) == ("R0", None), (first, last, report.notes)
        assert (report.weights_equal, report.states_equal) == (True, True)
        assert [row["skipped"] for row in report.steps] == [row["skipped_logged"] for row in report.steps]


def test_checkpoints_are_listed_in_the_layout_that_holds_them(added: Workspace) -> None:
    for name, layout in (("pythia", "hf"), ("saved_by_the_trainer", "neox")):
        found = added.checkpoints(added.run(name))
        assert [(checkpoint.step, checkpoint.layout) for checkpoint in found] == [(step, layout) for step in SAVED]
        assert all({"weights", "optimizer"} <= set(checkpoint.states) for checkpoint in found)


def without_the_first_lines(source: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(source, folder))
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(lines[9:]))
    return copy


def test_the_trainers_checkpoint_knows_the_skips_that_the_log_lost(
    runs: Path, tmp_path: Path, workspace: Workspace
) -> None:
    add(without_the_first_lines(runs / "saved_by_the_trainer", tmp_path / "kept"), workspace=workspace)
    add(without_the_first_lines(runs / "skips", tmp_path / "lost"), workspace=workspace)

    assert replay("kept", "9:20", workspace=workspace, device="cpu").grade == "R0"
    lost = replay("lost", "9:20", workspace=workspace, device="cpu")
    assert lost.grade != "R0"
    assert "The log does not say of all steps up to 9 whether the loss scale overflowed" in " ".join(lost.notes)


def test_a_log_that_counts_other_skips_than_the_checkpoint_is_said(
    runs: Path, tmp_path: Path, workspace: Workspace
) -> None:
    copy = Path(shutil.copytree(runs / "saved_by_the_trainer", tmp_path / "other"))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[2]["skipped"] = 1
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    add(copy, workspace=workspace)
    report = replay("other", "9:20", workspace=workspace, device="cpu")

    assert report.grade == "R0"
    assert "Checkpoint 9 counts 2 skipped steps before it, the log 3." in report.notes


# --- a run of GPT-NeoX itself ----------------------------------------------------------------------------------------


def test_the_trainers_own_run_is_replayed_to_its_log(tmp_path: Path, workspace: Workspace) -> None:
    """gpt-neox v1.0 itself (its kernels are not torch's, so R1): checkpoints, order, rates, groups and clipping."""
    folder = Path(shutil.copytree(FIXTURES.with_name("neox-checkpoint") / "v1.0", tmp_path / "v1.0"))
    (np.fromfile(FIXTURES / f"{TOY}.bin", dtype=np.uint16) % 128).tofile(folder / f"{TOY}.bin")
    shutil.copy(FIXTURES / f"{TOY}.idx", folder)
    add(folder, workspace=workspace)
    run = workspace.run("v1.0")
    report = replay("v1.0", "7:16", workspace=workspace, device="cpu")

    assert run.config["padded_vocab_size"] == 128, "only the trainer's checkpoint says so"
    assert [(place.step, place.layout) for place in workspace.checkpoints(run)] == [(7, "neox"), (16, "neox")]
    assert report.grade == "R1"
    assert report.max_abs_loss_difference is not None and report.max_abs_loss_difference < 2e-6
    assert report.weight_distance is not None and report.weight_distance < 1e-3


def test_where_a_step_was_saved_twice_the_trainers_own_checkpoint_counts(tmp_path: Path, workspace: Workspace) -> None:
    folder = Path(shutil.copytree(FIXTURES.with_name("neox-checkpoint") / "v1.0", tmp_path / "v1.0"))
    (np.fromfile(FIXTURES / f"{TOY}.bin", dtype=np.uint16) % 128).tofile(folder / f"{TOY}.bin")
    shutil.copy(FIXTURES / f"{TOY}.idx", folder)
    for step in (7, 9):
        (folder / f"step{step}").mkdir()
        (folder / f"step{step}" / "config.json").write_text("{}")
        save_file({"weight": torch.zeros(1)}, folder / f"step{step}" / "model.safetensors")
    add(folder, workspace=workspace)
    found = workspace.checkpoints(workspace.run("v1.0"))

    assert [(place.step, place.layout) for place in found] == [(7, "neox"), (9, "hf"), (16, "neox")]
    assert found[0].location == folder / "global_step7" and "optimizer" in found[0].states


def test_an_adam_count_that_was_not_saved_is_said(tmp_path: Path, workspace: Workspace) -> None:
    """Pythia's DeeperSpeed saved none; after a restart it began anew, which no file tells."""
    fixtures = FIXTURES.with_name("neox-checkpoint")
    folder = Path(shutil.copytree(fixtures / "v1.0", tmp_path / "v1.0"))
    shutil.copytree(fixtures / "zero-v1.0" / "global_step6", folder / "global_step6")
    (np.fromfile(FIXTURES / f"{TOY}.bin", dtype=np.uint16) % 128).tofile(folder / f"{TOY}.bin")
    shutil.copy(FIXTURES / f"{TOY}.idx", folder)
    add(folder, workspace=workspace)
    notes = " ".join(replay("v1.0", "6:7", workspace=workspace, device="cpu").notes)

    assert "did not save how many updates Adam counts. v1.0 is taken to have come to step 6 without a restart" in notes
    assert "Checkpoint 6 counts 3 skipped steps before it, the log 0" in notes
