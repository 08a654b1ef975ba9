"""The messages inside TensorBoard's and W&B's files, as far as they hold metrics.

Only the fields that are read are described; protobuf passes over the others, of whatever version the writer was.

Source: tensorboard/compat/proto/{event,summary,tensor}.proto 2.21; wandb/proto/wandb_internal.proto 0.31
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message -> field -> (number, type); a type that is a message here is spelled as one, `*` marks a list.
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Event": {"step": (2, "int64"), "file_version": (3, "bytes"), "summary": (5, "Summary")},
    "Summary": {"value": (1, "*Value")},
    "Value": {
        "tag": (1, "bytes"),
        "simple_value": (2, "float"),
        "tensor": (8, "Tensor"),
        "metadata": (9, "Metadata"),
    },
    "Metadata": {"plugin_data": (1, "PluginData")},
    "PluginData": {"plugin_name": (1, "bytes")},
    "Tensor": {
        "dtype": (1, "int32"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "*float"),
        "double_val": (6, "*double"),
        "int_val": (7, "*int32"),
        "int64_val": (10, "*int64"),
        "bool_val": (11, "*bool"),
        "half_val": (13, "*int32"),
    },
    "Record": {"history": (2, "History")},
    "History": {"item": (1, "*Item"), "step": (2, "HistoryStep")},
    "HistoryStep": {"num": (1, "int64")},
    "Item": {
        "key": (1, "bytes"),
        "nested_key": (2, "*bytes"),
        "boolean": (4, "bool"),
        "integer": (5, "sint64"),
        "number": (6, "double"),
        "text": (7, "bytes"),
        "json": (8, "bytes"),
        "value_json": (16, "bytes"),
    },
}


def _classes() -> dict[str, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="logs.proto", package="logs", syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind in _FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".logs.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"logs.{name}")) for name in _FIELDS}


_MADE = _classes()
Event, Record = _MADE["Event"], _MADE["Record"]
