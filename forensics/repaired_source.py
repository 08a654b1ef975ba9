"""How a source is written as a repaired model: a copy whose rows change, or a model folder that is written anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import UnknownLayout, UnsupportedRecipe
from data_index.files import copy_file, require_file, write_json
from data_index.olmo_checkpoint import HUGGING_FACE
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics.token_source import TokenSource

if TYPE_CHECKING:
    import torch

    from data_index.remote.path import Place
    from forensics.undertrained_tokens import Matrices
    from replay.embedding_weights import StoredEmbeddings
    from replay.model_folder import ModelFiles
    from replay.row_reset import RowReset


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepairedSource:
    """
    Attributes:
        checkpoint: where the weights are.
        files: of a folder that transformers saved; None: of another layout.
        config: config.json, where it has to be written.
        tokenizer: a tokenizer.json, where the folder holds none.
    """

    checkpoint: Checkpoint
    files: ModelFiles | None
    config: dict[str, Any] | None
    tokenizer: Path | None

    @property
    def in_place(self) -> bool:
        """Weights are copied, and rows changed in the copy."""
        return self.files is not None and self.files.copied

    @property
    def folder(self) -> Path | None:
        """The folder on disk that it is read from."""
        place = self.checkpoint.location
        return place.resolve() if isinstance(place, Path) else None

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.files.left_out if self.files is not None else ()

    @property
    def num_bytes(self) -> int:
        """Of all weights that are written and files that are copied."""
        return sum(self._sizes(self._written_anew()).values())

    def changed(self, resets: Sequence[RowReset]) -> tuple[str, ...]:
        """Files that are not the source's, byte for byte."""
        weights = tuple(self._files_of(resets) if self.in_place else self._written_anew())
        index = ("model.safetensors.index.json",) if not self.in_place and len(weights) > 1 else ()
        return (*weights, *index, *(("config.json",) if self.config is not None else ()))

    def copied(self, resets: Sequence[RowReset]) -> tuple[str, ...]:
        """Files that are the source's, byte for byte."""
        changed = self.changed(resets)
        return tuple(name for name in self._sizes({}) if name not in changed)

    def _written_anew(self) -> dict[str, int]:
        """Bytes of each file of weights that is no copy."""
        if self.in_place:
            return {}
        from replay.model_folder import part_bytes, shard_names
        from replay.weights import stored_weights

        parts, sizes = stored_weights(self.checkpoint), Counter[str]()
        for name, file in shard_names(parts).items():
            sizes[file] += part_bytes(parts[name])
        return dict(sizes)

    def _sizes(self, more: Mapping[str, int]) -> dict[str, int]:
        """Bytes of each file that is copied, and of more."""
        found = dict(more)
        if self.files is not None:
            kept = (*self.files.weights, *self.files.others) if self.in_place else self.files.others
            found |= {file.name: file.num_bytes for file in kept}
        return found | ({"tokenizer.json": require_file(self.tokenizer)} if self.tokenizer is not None else {})

    def tensors(self, stored: StoredEmbeddings, read: Matrices) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Every stored embedding tensor with its name and role: both where a tied matrix is saved twice."""
        if not self.in_place:
            yield stored.input.name, "input", read.input
            if stored.output is not None:
                yield stored.output.name, "output", read.unembedding
            if stored.bias is not None and read.bias is not None:
                yield stored.bias.name, "bias", read.bias
            return
        from replay.weights_hf import todays_name

        rows, at_hand = len(read.input), {stored.input.name: read.input}
        if stored.output is not None:
            at_hand[stored.output.name] = read.unembedding
        for _, name, role, tensor in self._embedding_tensors():
            if tensor.shape[:1] == (rows,) and len(tensor.shape) == (1 if role == "bias" else 2):
                matrix = at_hand.get(todays_name(name))
                yield name, role, tensor.read() if matrix is None else matrix

    def _embedding_tensors(self) -> Iterator[tuple[str, str, str, Any]]:
        from replay.row_reset import embedding_tensors

        assert self.files is not None
        for file in self.files.weights:
            for name, (role, tensor) in embedding_tensors(file.place).items():
                yield file.name, name, role, tensor

    def _files_of(self, resets: Sequence[RowReset]) -> dict[str, list[RowReset]]:
        """What is to be reset in each file of weights."""
        found: dict[str, list[RowReset]] = {}
        for file, name, _, _ in self._embedding_tensors():
            found.setdefault(file, []).extend(reset for reset in resets if reset.name == name and len(reset.ids))
        return {file: of_file for file, of_file in found.items() if of_file}

    def write(
        self, building: Path, resets: Sequence[RowReset], wrote: Callable[[int], None] = lambda count: None
    ) -> None:
        """Fill a folder that is being built; `wrote` is called with numbers of bytes, of `num_bytes` in all."""
        from replay.model_folder import copy_files, write_weights
        from replay.row_reset import reset_stored_rows

        if self.files is not None:
            copy_files(self.files.others, building, wrote)
        if self.in_place:
            assert self.files is not None
            copy_files(self.files.weights, building, wrote)
            for file, of_file in self._files_of(resets).items():
                reset_stored_rows(building / file, of_file)
        else:
            write_weights(building, self.checkpoint, {reset.name: reset for reset in resets}, wrote)
        if self.config is not None:
            write_json(building / "config.json", self.config)
        if self.tokenizer is not None:
            copy_file(self.tokenizer, building / "tokenizer.json")
            wrote(require_file(self.tokenizer))


def repaired_source(source: TokenSource, workspace: Workspace, tokenizer: Path | None) -> RepairedSource:
    """
    Args:
        tokenizer: that was named by the user.
    Raises:
        UnknownLayout, UnsupportedRecipe: it cannot be written as a model that transformers loads.
        MissingFile, CorruptFile, UnsafeFile
    """
    from replay.model_folder import model_files

    run = None if source.run is None else workspace.run(source.run)
    if run is None or source.step is None:
        place = _model_folder(source.place)
        checkpoint = Checkpoint(run=place.name, step=0, location=place, layout="hf", states=("weights",))
    else:
        checkpoint = workspace.checkpoint(run, source.step)
        tokenizer = tokenizer or run.tokenizer
    files = model_files(checkpoint.location) if checkpoint.layout == "hf" else None
    names = {file.name for file in files.others} if files is not None else set()
    return RepairedSource(
        checkpoint=checkpoint,
        files=files,
        config=None if run is None or "config.json" in names else _config(run, checkpoint),
        tokenizer=None if "tokenizer.json" in names else tokenizer,
    )


def _model_folder(place: Place) -> Place:
    """The folder itself.

    Raises:
        UnknownLayout: it is none that transformers saved; and what to do instead.
    """
    if place.suffix == ".gguf":
        raise UnknownLayout(
            f"{place} is GGUF, which is not written here: repair the model folder that it was made from, and convert "
            "the repaired one"
        )
    if place.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise UnknownLayout(
            f"{place} is a file of weights, without which model it is of: name the folder that holds it beside its "
            "config.json and tokenizer.json"
        )
    if not (place / "config.json").is_file() or not any((place / name).is_file() for name in HUGGING_FACE):
        raise UnknownLayout(
            f"{place} is no folder that transformers saved (config.json, and one of {', '.join(HUGGING_FACE)}): of a "
            "trainer's checkpoint, register its run with forensics add, and repair RUN --checkpoint N"
        )
    return place


def _config(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    from replay.model_folder import config_of
    from replay.recipe import recipe_of_run

    try:
        return config_of(recipe_of_run(run, approximate=True), checkpoint, run.eos_token_id)
    except UnsupportedRecipe as error:
        raise UnsupportedRecipe(f"{run.name} cannot be written as a model folder: {error}") from error
