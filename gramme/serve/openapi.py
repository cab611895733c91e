"""/openapi.json, made from the bodies' classes and the bounds of SamplingParams. Knows no route by name."""
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from gramme.request import Bound, SamplingParams

Json = dict[str, Any]
REFERENCE = "#/components/schemas/{name}"
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "integer", "null"]}}}}}


def document(routes: Mapping[str, tuple[str, type | None]], version: str) -> Json:
    """routes: path -> (method, class of the body). Paths may hold "{name:path}"."""
    bodies = [body for _, body in routes.values() if body is not None]
    _, components = msgspec.json.schema_components(bodies, ref_template=REFERENCE)
    for component in components.values():
        _add_bounds(component)
    paths: Json = {}
    for path, (method, body) in routes.items():
        paths[path.replace(":path}", "}")] = {method.lower(): _operation(path, body)}
    return {"openapi": "3.1.0", "info": {"title": "gramme", "version": version}, "paths": paths,
            "components": {"schemas": components | {"Error": ERROR},
                           "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}}


def _operation(path: str, body: type | None) -> Json:
    error = {"description": "an error", "content": {"application/json": {"schema": {
        "$ref": REFERENCE.format(name="Error")}}}}
    made: Json = {"responses": {"200": {"description": "done"}, "4XX": error, "5XX": error}}
    if body is not None:
        schema = {"$ref": REFERENCE.format(name=body.__name__)}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{id" in path:
        made["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return made


def _add_bounds(component: Json) -> None:
    """Where a property has a namesake in SamplingParams, the engine's bound is the property's."""
    for f in fields(SamplingParams):
        prop = component.get("properties", {}).get(f.name)
        if prop is not None and "bound" in f.metadata:
            for choice in prop.get("anyOf", [prop]):
                _add_bound(choice, f.metadata["bound"])


def _add_bound(schema: Json, bound: Bound) -> None:
    match schema.get("type"):
        case "integer" | "number":
            schema["exclusiveMinimum" if bound.above else "minimum"] = bound.low
            schema["maximum"] = bound.high
        case "string":
            schema |= {"minLength": bound.low, "maxLength": bound.high}
        case "array":
            schema["maxItems"] = bound.most
            _add_bound(schema["items"], bound)
        case "object":
            schema["maxProperties"] = bound.most
            _add_bound(schema["additionalProperties"], bound)
