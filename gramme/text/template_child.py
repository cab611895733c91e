"""The process that renders chat templates: jinja2 in a sandbox, one request after another on standard input.

A template comes from a model's files and is not trusted: it may loop for ever or build a huge string. Memory is limited
here; time is limited by the parent, which kills this process. Run as a file, so that nothing else is imported.

Messages both ways: 4 bytes of length, big-endian, and JSON.
In: {template, variables}. Out: {} when ready, then {text} or {error}.
"""
import json
import re
import resource
import sys
from datetime import datetime
from typing import Any

MEMORY_BYTES = 512 << 20
CPU_S = 30  # for one request: ends a loop whose parent has died; a living parent is quicker
MAX_TEXT_CHARS = 8 << 20


def environment() -> Any:
    import jinja2
    if tuple(map(int, re.findall(r"\d+", jinja2.__version__)[:3])) < (3, 1, 6):
        raise ImportError(f"jinja2 {jinja2.__version__} lets templates out of the sandbox; 3.1.6 or later is needed")
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks an answer for training; here its body is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}
    return env


def render(env: Any, compiled: dict[str, Any], request: dict[str, Any]) -> dict[str, str]:
    try:
        source = request["template"]
        if source not in compiled:
            compiled[source] = env.from_string(source)
        text = compiled[source].render(**request["variables"])
        if len(text) > MAX_TEXT_CHARS:
            return {"error": f"it made more than {MAX_TEXT_CHARS} characters"}
        return {"text": text}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # whatever a template raises is an answer, not the end of this process
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def send(stdout: Any, answer: dict[str, str]) -> None:
    data = json.dumps(answer).encode()
    stdout.write(len(data).to_bytes(4, "big") + data)
    stdout.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    compiled: dict[str, Any] = {}
    env, stdin, stdout = environment(), sys.stdin.buffer, sys.stdout.buffer
    send(stdout, {})
    while len(head := stdin.read(4)) == 4:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_S, hard))
        send(stdout, render(env, compiled, json.loads(stdin.read(int.from_bytes(head, "big")))))


if __name__ == "__main__":
    main()
