"""Reader of a user's table of tags: Parquet or CSV, with a document's id and a tag, or several, in each row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError
from data_index.files import require_file
from data_index.learned_tags import MAX_TAG_CHARACTERS

BATCH_ROWS = 100_000
KEYS = ("document_id", "external_id")


def read_given_tags(path: Path) -> Iterator[Any]:
    """Arrow tables of a key (`document_id`, int64, or `external_id`, text) and `tag` (text, never empty).

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it has no such columns, or is damaged.
    """
    import pyarrow

    require_file(path)
    try:
        for batch in _batches(path):
            yield _key_and_tag(batch, path)
    except ForensicsError:
        raise
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} is not a whole table of tags: {error}") from error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet
    from pyarrow import csv

    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)
    elif path.suffix == ".csv":
        types = {"document_id": pyarrow.int64(), "external_id": pyarrow.string(), "tag": pyarrow.string()}
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        yield from csv.open_csv(path, convert_options=convert)
    else:
        raise CorruptFile(f"{path}: tags are read from .parquet and .csv files")


def _key_and_tag(batch: Any, path: Path) -> Any:
    import pyarrow
    from pyarrow import compute

    names = batch.schema.names
    keys = [key for key in KEYS if key in names]
    if len(keys) != 1 or "tag" not in names:
        raise CorruptFile(
            f"{path} has the columns {', '.join(names)[:200]}; tags need `tag`, and `document_id` or `external_id`"
        )
    key, tag = batch.column(keys[0]), batch.column("tag")
    if pyarrow.types.is_list(tag.type) or pyarrow.types.is_large_list(tag.type):
        key, tag = key.take(compute.list_parent_indices(tag)), compute.list_flatten(tag)
    table = pyarrow.table({keys[0]: key, "tag": tag})
    kinds = {"document_id": pyarrow.int64(), "external_id": pyarrow.string(), "tag": pyarrow.string()}
    table = table.cast(pyarrow.schema([(name, kinds[name]) for name in table.column_names])).drop_null()
    lengths = compute.utf8_length(table.column("tag"))
    if table.num_rows and compute.max(lengths).as_py() > MAX_TAG_CHARACTERS:
        raise CorruptFile(f"{path} has a tag of more than {MAX_TAG_CHARACTERS} characters")
    return table.filter(compute.greater(lengths, 0))
