"""GPT-NeoX's and Megatron-DeepSpeed's order: documents shuffled, laid end to end, cut into samples, shuffled again.

    documents   sequences of one .bin file, `num_epochs` times, in one shuffled order (`document_order`)
    sample s    tokens s*L .. s*L + L + 1 of those documents laid end to end; `data_index.instances.megatron` cuts them
    item k      sample shuffle[k] of the dataset (`sample_order`)
    position i  item k of one of several datasets, chosen so that their shares stay close to the weights (`blend_order`)

GPT-NeoX shuffles all epochs jointly, so that second copies come from the start of training on. Megatron-DeepSpeed keeps
the last epoch apart where less than 0.95 of it is needed.

What a config asks for, in samples and shares of the data, is in `megatron_samples`.

Source: megatron/data/{gpt2_dataset,data_utils,blendable_dataset}.py and helpers.cpp of EleutherAI/gpt-neox @ ea7aefd8
(v1.0 orders alike); megatron/data/{gpt_dataset,dataset_utils}.py of bigscience-workshop/Megatron-DeepSpeed @ 8387ae17
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_index.errors import OrderMismatch, UnsupportedRecipe
from data_index.orders.blend import blend_order

NEOX_LAST_EPOCH_CUTOFF = 0.0  # never apart
DEEPSPEED_LAST_EPOCH_CUTOFF = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetShuffle:
    """How one dataset, a range of the sequences of one `.idx` file, is shuffled and cut.

    Attributes:
        first_sequence, num_sequences: the range; the trainers call them documents.
        num_tokens: of the range, once.
        sequence_length: L; a row has one token more, the label of its last.
        num_epochs: copies of each sequence.
        separate_last_epoch: whether the last copies are shuffled apart.
        len_is_one_short: GPT-NeoX believes in one sample fewer than there are (its issue 972); blends depend on it.
        first_instance: id of sample 0 within the run.
    """

    first_sequence: int
    num_sequences: int
    num_tokens: int
    sequence_length: int
    seed: int
    num_epochs: int
    separate_last_epoch: bool
    len_is_one_short: bool
    first_instance: int = 0

    @property
    def num_samples(self) -> int:
        """Samples cut, all of which can be served."""
        return samples_of_tokens(self.num_epochs * self.num_tokens, self.sequence_length)

    @property
    def num_items(self) -> int:
        """Samples that the trainer believes in."""
        return self.num_samples - self.len_is_one_short


def samples_of_tokens(num_tokens: int, sequence_length: int) -> int:
    """Samples in so many tokens; each shares its last token with the next one."""
    return (num_tokens - 1) // sequence_length


def num_epochs_for(num_tokens: int, sequence_length: int, num_samples: int) -> int:
    """The fewest epochs of `num_tokens` that hold `num_samples` samples; at least one."""
    return max(-(-(num_samples * sequence_length + 1) // num_tokens), 1)


def _tokens_of(sizes: np.ndarray) -> int:
    num_tokens = int(sizes.sum(dtype=np.int64))
    if not num_tokens:
        raise OrderMismatch(f"a dataset of {len(sizes)} sequences without tokens: check its .idx file and the split")
    return num_tokens


def neox_shuffle(
    sizes: np.ndarray,
    *,
    sequence_length: int,
    seed: int,
    num_samples: int | None,
    split: tuple[int, int] | None = None,
    num_epochs: int | None = None,
    pack_impl: str = "packed",
    first_instance: int = 0,
) -> DatasetShuffle:
    """GPT-NeoX's shuffle of one dataset.

    Args:
        sizes: tokens of every sequence of the `.idx` file.
        num_samples: wanted; see `megatron_samples.weighted_num_samples`. None where the run was told `train_epochs`.
        split: half-open range of sequences; all of them where None.
        num_epochs: `train_epochs`; else computed.
    Raises:
        UnsupportedRecipe: documents were not run together.
        OrderMismatch: there are too few tokens.
    """
    if pack_impl != "packed":
        raise UnsupportedRecipe(f"pack_impl {pack_impl!r} puts documents into rows another way; 'packed' is supported")
    first, stop = split or (0, len(sizes))
    num_tokens = _tokens_of(sizes[first:stop])
    if num_epochs is None:
        if num_samples is None:
            raise OrderMismatch("the config names neither train_iters nor train_epochs: one of them sets the order")
        num_epochs = num_epochs_for(num_tokens, sequence_length, num_samples)
    return DatasetShuffle(
        first_sequence=first,
        num_sequences=stop - first,
        num_tokens=num_tokens,
        sequence_length=sequence_length,
        seed=seed,
        num_epochs=num_epochs,
        separate_last_epoch=False,
        len_is_one_short=True,
        first_instance=first_instance,
    )


def deepspeed_shuffle(
    sizes: np.ndarray,
    *,
    sequence_length: int,
    seed: int,
    num_samples: int,
    split: tuple[int, int] | None = None,
    last_epoch_cutoff: float = DEEPSPEED_LAST_EPOCH_CUTOFF,
    first_instance: int = 0,
) -> DatasetShuffle:
    """Megatron-DeepSpeed's shuffle of one dataset; other descendants of Megatron-LM have another `last_epoch_cutoff`.

    Raises:
        UnsupportedRecipe: the trainer itself stops at these numbers.
        OrderMismatch: there are too few tokens.
    """
    first, stop = split or (0, len(sizes))
    num_tokens = _tokens_of(sizes[first:stop])
    num_epochs = num_epochs_for(num_tokens, sequence_length, num_samples)
    per_epoch = samples_of_tokens(num_tokens, sequence_length)
    from_last_epoch = num_samples - samples_of_tokens((num_epochs - 1) * num_tokens, sequence_length)
    if num_epochs > 1 and from_last_epoch > per_epoch:
        raise UnsupportedRecipe(
            f"{num_samples:,} samples need {from_last_epoch:,} of the last of {num_epochs} epochs, which has "
            f"{per_epoch:,}: the trainer refuses this too; check sequence_length and the number of samples"
        )
    return DatasetShuffle(
        first_sequence=first,
        num_sequences=stop - first,
        num_tokens=num_tokens,
        sequence_length=sequence_length,
        seed=seed,
        num_epochs=num_epochs,
        separate_last_epoch=num_epochs > 1 and from_last_epoch < int(last_epoch_cutoff * per_epoch),
        len_is_one_short=False,
        first_instance=first_instance,
    )


def document_order(shuffle: DatasetShuffle) -> np.ndarray:
    """Sequence in every slot of the documents laid end to end, int32 of shape [num_epochs * num_sequences]."""
    return _document_order(shuffle, np.random.RandomState(shuffle.seed))


def sample_order(shuffle: DatasetShuffle) -> np.ndarray:
    """Sample that each item is, uint32 (int64 from 2**32 - 2 samples on) of shape [num_samples]."""
    random = np.random.RandomState(shuffle.seed)
    _document_order(shuffle, random)  # the same generator goes on from there
    dtype = np.int64 if shuffle.num_samples >= np.iinfo(np.uint32).max - 1 else np.uint32
    order = np.arange(shuffle.num_samples, dtype=dtype)
    for part in _parts(shuffle, order, _samples_before_last_epoch(shuffle)):
        random.shuffle(part)
    return order


def _document_order(shuffle: DatasetShuffle, random: np.random.RandomState) -> np.ndarray:
    first = shuffle.first_sequence
    once = np.arange(first, first + shuffle.num_sequences, dtype=np.int32)
    order = np.tile(once, shuffle.num_epochs)
    for part in _parts(shuffle, order, (shuffle.num_epochs - 1) * shuffle.num_sequences):
        random.shuffle(part)
    return order


def _parts(shuffle: DatasetShuffle, order: np.ndarray, border: int) -> tuple[np.ndarray, ...]:
    """Views that are shuffled apart: all of it, or all but the last epoch and the last epoch."""
    return (order[:border], order[border:]) if shuffle.separate_last_epoch else (order,)


def _samples_before_last_epoch(shuffle: DatasetShuffle) -> int:
    return samples_of_tokens((shuffle.num_epochs - 1) * shuffle.num_tokens, shuffle.sequence_length)


def training_order(
    shuffles: Sequence[DatasetShuffle],
    weights: Sequence[float],
    num_positions: int,
    *,
    rows_per_loader_batch: int,
) -> np.ndarray:
    """Instance at every position of a training run from its first step on, unsigned, of shape [num_positions].

    Args:
        weights: of the datasets; anything positive for one alone.
        rows_per_loader_batch: micro-batch rows of all data-parallel ranks together. GPT-NeoX's loader drops what does
            not fill one at its end and begins again.
    Raises:
        OrderMismatch: Megatron-DeepSpeed would have run out of data.
    """
    length = sum(shuffle.num_items for shuffle in shuffles)
    datasets, items = blend_order(weights, min(length, num_positions))
    dtype = np.uint32 if max(s.first_instance + s.num_samples for s in shuffles) < 2**32 else np.uint64
    order = np.empty(len(datasets), dtype=dtype)
    for number, shuffle in enumerate(shuffles):
        places = np.flatnonzero(datasets == number) if len(shuffles) > 1 else slice(None)
        order[places] = sample_order(shuffle)[_served(shuffle, items[places])] + dtype(shuffle.first_instance)
    if num_positions <= length:
        return order
    whole = length // rows_per_loader_batch * rows_per_loader_batch
    if not whole or not all(shuffle.len_is_one_short for shuffle in shuffles):
        raise OrderMismatch(
            f"{num_positions:,} positions were asked for and the shuffled data hold {length:,}: check the number of "
            "samples, the batch size and the data files"
        )
    return np.resize(order[:whole], num_positions)


def _served(shuffle: DatasetShuffle, items: np.ndarray) -> np.ndarray:
    """Items as the dataset serves them: what lies behind its end counts, in GPT-NeoX, from the start again."""
    behind = items >= shuffle.num_samples
    if not behind.any():
        return items
    if not shuffle.len_is_one_short:
        raise OrderMismatch(
            f"the blend asks for item {int(items.max()):,} of a dataset of {shuffle.num_samples:,}; the trainer would "
            "have stopped there: check the weights and the number of samples"
        )
    return np.where(behind, items % shuffle.num_items, items)
