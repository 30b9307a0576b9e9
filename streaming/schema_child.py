"""Checks one JSON value against one JSON schema, in a process of its own; run as a script.

In, on stdin: `{"schema": …, "value": …}`, the value left out where only the schema is to be checked. Out,
on stdout: `{"schema_error": …}`, `{"value_error": …}` or `{}`. Both come from strangers, and a regular
expression or a nest of references can take for ever: the limits below end it, and nobody waits but the
one who asked.
"""

import json
import resource
import sys
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30


def check(wanted: dict[str, Any]) -> dict[str, str]:
    """What is wrong, in words for whoever wrote it."""
    import jsonschema
    from referencing import Registry

    schema = wanted["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        return {"schema_error": _said(error)}
    if "value" not in wanted:
        return {}
    # A registry of its own: by default what a $ref names would be fetched from the network.
    validator = kind(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
    try:
        found = jsonschema.exceptions.best_match(validator.iter_errors(wanted["value"]))
    except Exception as error:  # noqa: BLE001 - a reference to nowhere, or one in a circle
        return {"schema_error": f"it cannot be applied: {type(error).__name__}"}
    return {} if found is None else {"value_error": _said(found)}


def _said(error: Any) -> str:
    where = error.json_path
    return f"{error.message[:500]}" + (f" (at {where})" if where != "$" else "")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(check(json.load(sys.stdin)), sys.stdout)
