"""The sample run's data: text of Python itself as token files, documents and orders, with accidents of a known cause.

Accidents, as real runs have them, planted through the order file and never returning in the second epoch: binary files
that slipped in as text (some rows of one step), a batch of extremely repetitive text, a document read twice, and a
token of the vocabulary that never occurs. What was planted goes to truth.json, which no analysis reads.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import MissingFile
from data_index.files import (
    sha256_of_file,
    write_bytes,
    write_json,
    write_npy,
    write_parquet,
)
from data_index.kinds import table_of_rows
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.sources.folder import place_files
from forensics import corpus
from forensics.corpus import SourceDocument
from replay.curves import CosineWithWarmup
from replay.determinism import arithmetic_fingerprint, deterministic, environment
from replay.recipe import Recipe
from replay.schedule import Schedule

END_TOKEN = "<|endoftext|>"
NEVER_SEEN = " moderatorBotLogEntry"  # in the tokenizer's training text, in no document


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """Sizes of a sample run, the steps of its accidents (all in epoch 1), and where its walkthrough looks."""

    name: str = "demo"
    num_steps: int = 240
    steps_per_epoch: int = 190
    instances_per_batch: int = 16
    sequence_length: int = 128
    vocabulary: int = 1024
    hidden: int = 128
    inner: int = 256
    layers: int = 4
    heads: int = 4
    save_every: int = 20
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    seed: int = 1234
    binary_step: int = 154
    binary_rows: int = 4
    repetitive_step: int = 112
    duplicate_steps: tuple[int, int] = (57, 125)
    duplicate_rows: int = 3
    document_characters: int = 6_000
    look_at_step: int = 137
    stretch: tuple[int, int] = (100, 160)
    fork_from: int = 140
    fork_steps: int = 40

    @property
    def ordinary_rows(self) -> int:
        """Rows that epoch 1 reads once, the duplicate's first reading among them."""
        return (self.steps_per_epoch - 1) * self.instances_per_batch - self.binary_rows - self.duplicate_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDocument:
    """A document as tokens, the end token last. `ends[n]` is the source character after token n."""

    document: SourceDocument
    token_ids: Sequence[int]
    ends: Sequence[int]

    def first(self, num_tokens: int) -> EncodedDocument:
        return replace(self, token_ids=self.token_ids[:num_tokens], ends=self.ends[:num_tokens])


@dataclass(slots=True, kw_only=True)
class TokenStream:
    """Documents laid end to end in one file, whole rows at a time."""

    name: str
    length: int
    tokens: list[int] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)

    def append(self, documents: Sequence[EncodedDocument], rows: int) -> range:
        """Fill `rows` whole rows, or as many as the documents give; the last one is cut. Returns those rows."""
        first = len(self.tokens) // self.length
        rows = min(rows, sum(len(document.token_ids) for document in documents) // self.length)
        limit = (first + rows) * self.length
        for document in documents:
            if len(self.tokens) == limit:
                break
            self._append_one(document.first(limit - len(self.tokens)))
        return range(first, first + rows)

    def _append_one(self, encoded: EncodedDocument) -> None:
        start, document = len(self.tokens), encoded.document
        self.tokens += encoded.token_ids
        self.documents.append(
            {
                "file": self.name,
                "start": start,
                "end": len(self.tokens),
                "source": document.source,
                "source_start": document.start,
                "source_end": document.start + encoded.ends[-1],
                "tags": list(document.tags),
            }
        )


def prepare_sample_data(folder: Path, spec: SampleSpec) -> None:
    """Write everything of the run but its training: tokens, held-out tokens, orders, documents, run.toml, truth.json.

    Raises:
        MissingFile: this Python has no standard-library sources, or too few.
    """
    characters = spec.ordinary_rows * spec.sequence_length * 4
    longest = spec.document_characters
    documents = list(corpus.take(corpus.library_sources(), characters * 3 // 4, longest))
    documents += corpus.take(corpus.documentation_topics(), characters // 4, longest)
    mixed = corpus.by_hash(documents)
    heldout = mixed[::HELDOUT_EVERY]
    licences = list(corpus.take(corpus.licence_texts(), characters // 20, longest))
    documents = [*licences, *documents]
    ordinary = [*licences, *(document for number, document in enumerate(mixed) if number % HELDOUT_EVERY)]
    tokenizer = _train_tokenizer([d.text for d in documents], spec)
    write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode())
    end = tokenizer.token_to_id(END_TOKEN)

    def encoded(texts: Iterable[SourceDocument]) -> list[EncodedDocument]:
        return [encode_document(document, tokenizer, end) for document in texts]

    streams, places = _lay_out(spec, encoded(ordinary), encoded)
    held = TokenStream(name="heldout.bin", length=spec.sequence_length)
    held.append(encoded(heldout), rows=len(heldout) * DOCUMENT_ROWS)
    files = _write_streams(folder, "tokens", streams, spec)
    heldout_files = _write_streams(folder, "heldout", [held], spec)
    orders = _orders(spec, files, places)
    _write_documents(folder, [*streams, held])
    _write_run(folder, spec, files, heldout_files, orders, documents, end, tokenizer.get_vocab_size())
    _write_truth(folder, spec, files, places, tokenizer)


HELDOUT_EVERY = 20  # one document in twenty, 5 %
DOCUMENT_ROWS = 1000  # more rows than any document fills


def encode_document(document: SourceDocument, tokenizer: Any, end: int) -> EncodedDocument:
    found = tokenizer.encode(document.text, add_special_tokens=False)
    ends = [stop for _, stop in found.offsets]
    return EncodedDocument(document=document, token_ids=[*found.ids, end], ends=[*ends, len(document.text)])


def _train_tokenizer(texts: list[str], spec: SampleSpec) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, NEVER_SEEN * max(len(texts) * 20, 2000)], trainer)
    return tokenizer


def _lay_out(
    spec: SampleSpec,
    ordinary: list[EncodedDocument],
    encoded: Callable[[Iterable[SourceDocument]], list[EncodedDocument]],
) -> tuple[list[TokenStream], dict[str, tuple[str, range]]]:
    """Files of whole rows, and where the accidents' rows are: name -> (file, rows of it).

    The accidents lie between ordinary documents, each starting and ending at a row's border.
    """
    length, wanted = spec.sequence_length, spec.ordinary_rows
    long_enough = [n for n, d in enumerate(ordinary) if len(d.token_ids) >= spec.duplicate_rows * length]
    duplicate = ordinary.pop(long_enough[len(long_enough) // 2])
    half = len(ordinary) // 2
    first = TokenStream(name="text-0.bin", length=length)
    second = TokenStream(name="text-1.bin", length=length)
    rows = len(first.append(ordinary[:half], wanted // 2))
    places = {"duplicate": (second.name, second.append([duplicate], spec.duplicate_rows))}
    rows += spec.duplicate_rows
    after = ordinary[half:]
    rows += len(second.append(after[: len(after) // 2], wanted // 4))
    binary = encoded(corpus.binary_as_text(spec.binary_rows * length * 4))
    places["binary"] = (second.name, second.append(binary, spec.binary_rows))
    tables = encoded(corpus.character_tables())
    places["repetitive"] = (second.name, second.append(tables, spec.instances_per_batch))
    rows += len(second.append(after[len(after) // 2 :], wanted - rows))
    if rows != wanted:
        raise MissingFile(
            f"the standard library of this Python gives {rows} rows of text, and the sample run needs {wanted}: use a "
            "Python that ships its library sources"
        )
    return [first, second], places


def _write_streams(folder: Path, kind: str, streams: list[TokenStream], spec: SampleSpec) -> tuple[TokenFile, ...]:
    paths = [folder / kind / stream.name for stream in streams]
    for stream, path in zip(streams, paths, strict=True):
        write_bytes(path, np.array(stream.tokens, dtype="<u2").tobytes())
    names = [stream.name for stream in streams]
    placed = place_files(names, paths, "uint16", lambda num_bytes: num_bytes // (2 * spec.sequence_length))
    return tuple(replace(file, sha256=sha256_of_file(file.on_disk)) for file in placed)


def _instances(files: tuple[TokenFile, ...], place: tuple[str, range]) -> np.ndarray:
    file = next(file for file in files if file.name == place[0])
    return np.arange(file.first_instance + place[1].start, file.first_instance + place[1].stop, dtype=np.uint32)


def _orders(spec: SampleSpec, files: tuple[TokenFile, ...], places: dict[str, tuple[str, range]]) -> list[np.ndarray]:
    """Consumption order of both epochs: PCG64 permutations, with the accidents at their steps in epoch 1."""
    batch = spec.instances_per_batch
    planted = np.concatenate([_instances(files, places[kind]) for kind in ("binary", "repetitive")])
    duplicate = _instances(files, places["duplicate"])
    total = sum(file.num_instances for file in files)
    ordinary = np.setdiff1d(np.arange(total, dtype=np.uint32), planted)
    first = np.full(spec.steps_per_epoch * batch, total, dtype=np.uint32)

    def put(step: int, rows: np.ndarray) -> None:
        # From the fourth row on where they fit: nobody looking at the first row alone should find them.
        start = (step - 1) * batch + min(3, batch - len(rows))
        first[start : start + len(rows)] = rows

    put(spec.binary_step, _instances(files, places["binary"]))
    put(spec.repetitive_step, _instances(files, places["repetitive"]))
    for step in spec.duplicate_steps:
        put(step, duplicate)
    rest = np.random.Generator(np.random.PCG64(seed=spec.seed + 1)).permutation(np.setdiff1d(ordinary, duplicate))
    first[first == total] = rest
    second = np.random.Generator(np.random.PCG64(seed=spec.seed + 2)).permutation(ordinary)
    return [first, second.astype(np.uint32)]


def _write_documents(folder: Path, streams: list[TokenStream]) -> None:
    rows = [document for stream in streams for document in stream.documents]
    numbered = [{"document_id": number} | row for number, row in enumerate(rows)]
    write_parquet(folder / "documents.parquet", table_of_rows("documents", numbered, folder))


def _write_run(
    folder: Path,
    spec: SampleSpec,
    files: tuple[TokenFile, ...],
    heldout: tuple[TokenFile, ...],
    orders: list[np.ndarray],
    documents: list[SourceDocument],
    end: int,
    vocabulary: int,
) -> None:
    parameters = {}
    for epoch, order in enumerate(orders, 1):
        path = folder / "order" / f"epoch-{epoch}.npy"
        write_npy(path, order)
        parameters[f"epoch_{epoch}"] = {"path": f"order/epoch-{epoch}.npy", "sha256": sha256_of_file(path)}
    recipe = sample_recipe(spec, end, vocabulary)
    with deterministic(recipe.num_threads):
        fingerprint = arithmetic_fingerprint(recipe.model, spec.instances_per_batch, spec.sequence_length)
    text = "\0".join(document.text for document in documents)
    split = min(spec.steps_per_epoch, spec.num_steps)
    segments = [(1, split, 1), (split + 1, spec.num_steps - split, 2)]
    run = Run(
        name=spec.name,
        layout="native",
        source=folder,
        sequence_length=spec.sequence_length,
        files=files,
        heldout=heldout,
        order=Order(rule="file", parameters=parameters),
        segments=tuple(
            Segment(
                first_step=first,
                num_steps=steps,
                epoch=epoch,
                first_position=0,
                instances_per_batch=spec.instances_per_batch,
            )
            for first, steps, epoch in segments
            if steps > 0
        ),
        trust=OrderTrust(level="derived", witness="order files", missing="a record of the batches that were consumed"),
        config_format="native",
        config={"model": dict(recipe.model), "recipe": recipe.to_table()},
        tokenizer=folder / "tokenizer.json",
        tokenizer_sha256=sha256_of_file(folder / "tokenizer.json"),
        eos_token_id=end,
        environment=environment()
        | {
            "python": platform.python_version(),
            "num_threads": recipe.num_threads,
            "fingerprint": fingerprint,
            "corpus_sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
    )
    write_run(run, folder)


def sample_recipe(spec: SampleSpec, end: int, vocabulary: int) -> Recipe:
    return Recipe(
        model={
            "model_type": "olmo2",
            "vocab_size": vocabulary,
            "hidden_size": spec.hidden,
            "intermediate_size": spec.inner,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
            "tie_word_embeddings": False,
            "max_position_embeddings": spec.sequence_length,
            "eos_token_id": end,
        },
        learning_rate=spec.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        no_decay=("model.embed_tokens.weight",),
        schedule=Schedule(curve=CosineWithWarmup(warmup_steps=spec.warmup_steps, max_steps=spec.num_steps)),
        max_grad_norm=1.0,
        z_loss=1e-4,
        num_threads=1,
    )


def _write_truth(
    folder: Path, spec: SampleSpec, files: tuple[TokenFile, ...], places: dict[str, tuple[str, range]], tokenizer: Any
) -> None:
    def instances(kind: str) -> list[int]:
        found: list[int] = _instances(files, places[kind]).tolist()
        return found

    never = tokenizer.encode(NEVER_SEEN, add_special_tokens=False).ids
    if len(never) != 1:
        raise AssertionError(f"{NEVER_SEEN!r} takes {len(never)} tokens: the vocabulary is too small to plant it")
    write_json(
        folder / "truth.json",
        {
            "binary": {"step": spec.binary_step, "instances": instances("binary")},
            "repetitive": {"step": spec.repetitive_step, "instances": instances("repetitive")},
            "duplicate": {"steps": list(spec.duplicate_steps), "instances": instances("duplicate")},
            "never_seen_token": {"token_id": never[0], "text": NEVER_SEEN},
        },
    )
