"""As much of JSON Schema as docs/status.schema.json needs: types, enumerations, properties and items.

A library would do it too, and would have to be installed by everybody who runs the tests, for one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STATUS_SCHEMA: Mapping[str, Any] = json.loads((Path(__file__).parents[1] / "docs" / "status.schema.json").read_text())
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_UNDERSTOOD = {"$schema", "title", "description", "type", "enum", "properties", "required", "items"}


def violations(value: object, schema: Mapping[str, Any], at: str = "$") -> Iterator[str]:
    """Tell what in a value is not as the schema says, and what is in an object that the schema does not name."""
    assert schema.keys() <= _UNDERSTOOD, f"{at}: this checker does not know {schema.keys() - _UNDERSTOOD}"
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    # To Python, True is an int.
    if not any(isinstance(value, _TYPES[name]) and (name == "boolean" or value is not True) for name in names):
        yield f"{at} is {value!r}, not {' or '.join(names)}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{at} is {value!r}, none of {schema['enum']}"
    if isinstance(value, dict) and "properties" in schema:
        yield from (f"{at} lacks {name}" for name in schema["required"] if name not in value)
        for name, one in value.items():
            if name in schema["properties"]:
                yield from violations(one, schema["properties"][name], f"{at}.{name}")
            else:
                yield f"{at} has {name}, which the schema does not name"
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            yield from violations(one, schema["items"], f"{at}[{number}]")
