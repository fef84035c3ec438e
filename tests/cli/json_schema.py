"""A checker of the part of JSON schema that pydantic writes; stricter than the standard: keys that are not described are faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),), "integer": (int,),
    "number": (int, float),
}  # fmt: skip
_KNOWN = frozenset(
    ("$ref", "$defs", "title", "description", "default", "examples", "type", "const", "enum", "anyOf", "properties", "required",
     "additionalProperties", "items", "minItems", "minimum", "exclusiveMinimum", "maximum", "minLength")
)  # fmt: skip


def faults(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What in `value` is not as `schema` says, each with its place."""
    return list(_faults(value, schema, schema.get("$defs", {}), "$"))


def _faults(value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], at: str) -> Iterator[str]:
    assert set(schema) <= _KNOWN, f"{at}: this checker knows nothing of {sorted(set(schema) - _KNOWN)}"
    if "$ref" in schema:
        yield from _faults(value, defs[schema["$ref"].rpartition("/")[2]], defs, at)
        return
    if "anyOf" in schema:
        tried = [list(_faults(value, option, defs, at)) for option in schema["anyOf"]]
        if all(tried):
            yield min(tried, key=len)[0]
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}, not one of {schema['enum']}"
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at} is {type(value).__name__}, not {kind}"
        return
    if kind == "object":
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", not schema.get("properties"))
        yield from (f"{at} has no {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if key in known:
                yield from _faults(item, known[key], defs, f"{at}.{key}")
            elif isinstance(rest, Mapping):
                yield from _faults(item, rest, defs, f"{at}.{key}")
            elif not rest:
                yield f"{at} has {key}, which is not described"
    if kind == "array":
        if len(value) < schema.get("minItems", 0):
            yield f"{at} has {len(value)} items"
        for k, item in enumerate(value):
            yield from _faults(item, schema.get("items", {}), defs, f"{at}[{k}]")
    if kind in ("integer", "number"):
        low, above, high = (schema.get(k) for k in ("minimum", "exclusiveMinimum", "maximum"))
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
        ):
            yield f"{at} is {value}"
