"""The views and macros of the joined connection, as statements by name. `store` executes those that a question needs.

Every run's index has its own views; here they are joined under one name each, with a column `run`. A view without rows
is an empty table with its columns. To make all views of thirty runs takes longer than most questions do, so that a
question gets those whose names stand in it, and those that these stand on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources

from data_index.kinds import ADDED_COLUMNS, KINDS
from data_index.run import Run
from data_index.workspace import Workspace

# Views that each run's index.duckdb holds.
INDEX_VIEWS: Mapping[str, str] = {
    "segments": "first_step BIGINT, num_steps BIGINT, attempt BIGINT, epoch BIGINT, first_position BIGINT, "
    "instances_per_batch BIGINT, loss_denominator BIGINT, outcome VARCHAR",
    "files": "file VARCHAR, path VARCHAR, dtype VARCHAR, num_bytes BIGINT, first_instance BIGINT, "
    "num_instances BIGINT, first_token BIGINT",
    "pieces": "instance BIGINT, first_token BIGINT, file VARCHAR, start BIGINT, stop BIGINT",
    "batches": "step BIGINT, attempt INTEGER, epoch INTEGER, position BIGINT, instance BIGINT, file VARCHAR, "
    '"offset" BIGINT, num_tokens INTEGER',
    "instances": "instance BIGINT, epoch INTEGER, step BIGINT, attempt INTEGER, position BIGINT, file VARCHAR, "
    '"offset" BIGINT',
}
# Tables that are filled from the runs' records.
TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": {
        "run": "VARCHAR",
        "layout": "VARCHAR",
        "source": "VARCHAR",
        "first_step": "BIGINT",
        "last_step": "BIGINT",
        "sequence_length": "BIGINT",
        "num_instances": "BIGINT",
        "trust": "VARCHAR",
        "parent": "VARCHAR",
        "parent_step": "BIGINT",
    },
    "checkpoints": {"run": "VARCHAR", **KINDS["checkpoints"]},
    "findings": {
        "finding": "VARCHAR",
        "verb": "VARCHAR",
        "runs": "VARCHAR[]",
        "command": "VARCHAR",
        "made_at": "VARCHAR",
    },
    "passed_over": {
        "run": "VARCHAR",
        "first_step": "BIGINT",
        "last_step": "BIGINT",
        "attempt": "BIGINT",
        "kind": "VARCHAR",
        "epoch": "BIGINT",
        "first_position": "BIGINT",
        "num_instances": "BIGINT",
    },
}
# Views of these kinds are narrower than the derived views of those names: `masks` holds what the trainer hid as well,
# `tags` what the documents table says, `probes` what publishers evaluated.
KIND_OF_VIEW: Mapping[str, str] = {
    {"masks": "edit_masks", "tags": "learned_tags", "probes": "measured_probes"}.get(kind, kind): kind
    for kind in KINDS
    if kind != "checkpoints"
}
# What a user is told of each view and macro by `forensics sql --schema`, with a question to try on the sample run.
DESCRIPTIONS: Mapping[str, tuple[str, str]] = {
    "runs": ("runs and forks, how far each goes, and why its order is to be believed", "from runs"),
    "forks": ("those of them that descend from another", "from forks"),
    "findings": ("answers that were kept with their pictures: blame, compare, trajectory …", "from findings"),
    "segments": ("stretches of steps with one order, batch size and epoch", "from segments where run = 'demo'"),
    "checkpoints": ("where each checkpoint is, and the states it holds", "from checkpoints where step > 100"),
    "files": ("token files, and the instances that begin in each", "from files where run = 'demo'"),
    "pieces": ("pieces of instances that are not cut from one place", "from pieces limit 5"),
    "batches": (
        "one row for each row of each step, in batch order; offset in tokens from the file's start",
        "select step, count(*) from batches where run = 'demo' group by step order by step",
    ),
    "instances": (
        "one row for each time an instance was read; step is null where an epoch never read it",
        "from instances where run = 'demo' and instance = 12",
    ),
    "documents": ("source texts: tokens start to end (exclusive) of a file", "from documents where document_id = 881"),
    "spans": ("pieces of documents inside instances, ends exclusive", "from spans where document_id = 881"),
    "tags": ("tags of documents", "select tag, count(*) from tags group by tag"),
    "learned_tags": ("those of them that forensics tag learned, and where from", "from learned_tags limit 5"),
    "masks": ("tokens of a row that are hidden from the loss, and why", "from masks where run = 'demo'"),
    "edit_masks": ("those of them that edits hide", "from edit_masks"),
    "hidden": ("those that the trainer hides, found by forensics exposures", "from hidden limit 5"),
    "skips": (
        "steps that changed no weight, and data that no step read",
        "select kind, count(*) from skips group by kind",
    ),
    "passed_over": ("those of them that follow from the segments", "from passed_over"),
    "exposures": (
        "how often each token id was consumed up to each checkpoint (forensics exposures counts)",
        "select step, sum(as_target) from exposures where run = 'demo' group by step order by step",
    ),
    "metrics": (
        "everything logged, at full resolution; name is canonical, original_name the trainer's",
        "select step, value from metrics where run = 'demo' and name = 'loss' order by step",
    ),
    "consumed": ("the trainer's own record of what it read", "from consumed where step = 137"),
    "parameter_hashes": ("hashes of all parameters after a step, as the trainer logged them", "from parameter_hashes"),
    "block_hashes": ("hashes of blocks of 4 MiB of token files", "from block_hashes limit 5"),
    "file_hashes": ("hashes of whole files", "from file_hashes limit 5"),
    "document_hashes": ("hashes of documents' tokens, as forensics repeats found them", "from document_hashes limit 5"),
    "instance_hashes": ("hashes of instances' tokens", "from instance_hashes limit 5"),
    "minhashes": ("MinHash signatures of texts, by the hash of the text", "from minhashes limit 5"),
    "audit": ("what forensics audit found", "from audit where result <> 'ok'"),
    "evaluations": ("published evaluations by task", "from evaluations where task = 'lambada'"),
    "probes": (
        "metrics of checkpoints: what forensics probe measured (source is null), and published evaluations",
        "select step, value, low, high from probes where run = 'demo' and probe = 'loss' order by step",
    ),
    "measured_probes": ("those of them that forensics probe measured", "from measured_probes where step = 240"),
    "spikes": ("what forensics spikes found in the log", "from spikes where run = 'demo' order by peak_z desc"),
    "tokens": (
        "how little each token was trained, as forensics tokens found at a checkpoint; low indicators are suspicious",
        "select token_id, text, indicator from tokens where candidate order by rank",
    ),
    "token_paths": (
        "how little each token was trained at each checkpoint, as forensics tokens --track found",
        "select step, count(*) from token_paths where untrained group by step order by step",
    ),
    "token_origins": (
        "the first documents each token was read in, and how often with which tags (forensics tokens --track)",
        "from token_origins where len(document_ids) < 3",
    ),
    "token_losses": (
        "losses of the tokens of a step's rows under a checkpoint's weights, as forensics batch --losses computed them",
        "select instance, avg(loss) from token_losses where run = 'demo' and step = 154 group by instance order by 2",
    ),
    "batch()": ("batch(run, step): the rows of a step", "from batch('demo', 137)"),
    "exposures()": (
        "exposures(run, step): counts of each token id up to the last record not after a step",
        "from exposures('demo', 137) order by as_target desc limit 10",
    ),
    "steps_of_instance()": (
        "steps_of_instance(run, instance): every step that read an instance",
        "from steps_of_instance('demo', 12)",
    ),
}
_CREATED = re.compile(r"^CREATE (VIEW|MACRO) (\w+)", re.MULTILINE)
# A macro's first argument is a run, where it has two.
_CALL_ON_A_RUN = re.compile(r"\b(?:batch|steps_of_instance|exposures)\s*\(\s*'((?:[^']|'')*)'", re.IGNORECASE)
# Who asks what there is, is shown all of it.
_CATALOG_WORDS = re.compile(r"\b(duckdb_|information_schema|sqlite_|pg_|show\b|describe\b|summarize\b)", re.IGNORECASE)


def text_literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def identifier(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


@cache
def derived_statements() -> Mapping[str, str]:
    """Views and macros that stand on others, by name, in the order in which they can be made.

    A macro's name has parentheses: a view may be called the same.
    """
    text = re.sub(r"--.*", "", (resources.files("data_index") / "sql" / "views.sql").read_text())
    found: dict[str, str] = {}
    for statement in re.split(r";\s*\n", text):
        if match := _CREATED.search(statement):
            found[match[2] + ("()" if match[1] == "MACRO" else "")] = statement
    return found


@cache
def needs(name: str) -> frozenset[str]:
    """The views, tables and macros that one stands on, itself included."""
    statement = derived_statements().get(name, "")
    direct = _named_in(statement) - {name} if statement else frozenset()
    return frozenset({name}).union(*(needs(other) for other in direct))


def _all_names() -> list[str]:
    return [*TABLES, *INDEX_VIEWS, *KIND_OF_VIEW, *derived_statements()]


def _named_in(text: str) -> frozenset[str]:
    words = set(re.findall(r"\w+", text.lower()))
    return frozenset(name for name in _all_names() if name.removesuffix("()") in words)


def names_for(question: str | None) -> list[str]:
    """What a question needs, in the order in which it can be made; all there is for None."""
    if question is None or _CATALOG_WORDS.search(question):
        return _all_names()
    wanted: frozenset[str] = frozenset().union(*(needs(name) for name in _named_in(question)))
    return [name for name in _all_names() if name in wanted]


def runs_for(question: str | None, names: Sequence[str]) -> list[str]:
    """The runs of which a question can tell anything: where it names no view, those that its macros are called with."""
    called = [match[1].replace("''", "'") for match in _CALL_ON_A_RUN.finditer(question or "")]
    if question is None or not called or names_for(_CALL_ON_A_RUN.sub(" ", question)):
        return list(names)
    return [name for name in names if name in called]


def statement_of(name: str, workspace: Workspace, runs: Mapping[str, Run]) -> str:
    """The statement that makes a view over some runs.

    Raises:
        MissingFile, CorruptFile: a file that is named to be in force is not there.
    """
    if name in derived_statements():
        return derived_statements()[name]
    if name in INDEX_VIEWS:
        parts = [f"SELECT {text_literal(run)} AS run, * FROM {identifier(run)}.{name}" for run in runs]
        columns: Iterable[Sequence[str]] = (c.strip().rsplit(" ", 1) for c in INDEX_VIEWS[name].split(","))
        return _view(name, columns, parts)
    kind = KIND_OF_VIEW[name]
    together = ", union_by_name = true" if kind in ADDED_COLUMNS else ""
    files = {run: workspace.learned_files(workspace.home(run), kind) for run in runs}
    parts = [
        f"SELECT {text_literal(run)} AS run, * FROM "
        f"read_parquet([{', '.join(text_literal(str(path)) for path in paths)}]{together})"
        for run, paths in files.items()
        if paths
    ]
    return _view(name, ((f'"{column}"', type_) for column, type_ in KINDS[kind].items()), parts)


def _view(name: str, columns: Iterable[Sequence[str]], parts: Sequence[str]) -> str:
    nulls = ", ".join(f"NULL::{kind} AS {column}" for column, kind in columns)
    # The empty part comes first: it has the columns in order, and files from before one was added lack it.
    body = " UNION ALL BY NAME ".join([f"SELECT NULL::VARCHAR AS run, {nulls} WHERE false", *parts])
    return f"CREATE VIEW {name} AS {body}"


def needs_indexes(names: Iterable[str]) -> bool:
    """Do these stand on the runs' index files?"""
    return not INDEX_VIEWS.keys().isdisjoint(names)
