"""The jinja2 environment for chat templates: HF's dialect, sandboxed, under limits of time and size.

A checkpoint's template is code somebody else wrote. It runs in jinja2's ImmutableSandboxedEnvironment, which keeps it
from Python's internals. A sandbox does not bound work, so every loop iteration, macro and call looks at a deadline, and
`range`, `*`, `**`, `+` and `~` at the size they would make.

The limit that remains: one single operation of the C library (say `'x'.center(10**9)`) cannot be interrupted; it is
caught only when it returns. Serve checkpoints whose template you would also run with transformers.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TEXT = 16 << 20
MAX_POWER_BITS = 1 << 16


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; rendering passes its body through."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PlainNamespace(Namespace):
    """`namespace()` without underscore-prefixed attributes, as in HF."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """HF's chat template environment, with limits. `deadline` bounds the rendering done inside it."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self._deadline: ContextVar[float] = ContextVar("template_deadline")
        self.filters["tojson"] = _tojson
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=PlainNamespace, dict=_make_dict
        )

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Let templates run for at most `seconds` inside this block; then they raise SecurityError."""
        token = self._deadline.set(time.monotonic() + seconds)
        try:
            yield
        finally:
            self._deadline.reset(token)

    def check_deadline(self) -> None:
        """Raise SecurityError when the time is over."""
        if time.monotonic() > self._deadline.get():
            raise SecurityError("the chat template took too long")

    def concatenate(self, *values: Any) -> str:
        """The `~` operator, bounded."""
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.check_deadline()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_size(_length(left) * _count(right), _length(right) * _count(left))
        elif operator == "+":
            _check_size(_length(left) + _length(right))
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_POWER_BITS:
            raise SecurityError("the chat template computes a number that is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        blocks: list[nodes.For | nodes.Macro] = [*template.find_all(nodes.For), *template.find_all(nodes.Macro)]
        for block in blocks:
            check = nodes.Call(nodes.EnvironmentAttribute("check_deadline"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(check, lineno=block.lineno))
        return _ConcatBounder().visit(template)  # type: ignore[no-any-return]


class _ConcatBounder:
    """Replaces every `a ~ b` of a syntax tree by a call of `TemplateEnvironment.concatenate`."""

    def visit(self, node: nodes.Node) -> Any:
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, field, self.visit(value))
            elif isinstance(value, list):
                setattr(node, field, [self.visit(item) if isinstance(item, nodes.Node) else item for item in value])
        if not isinstance(node, nodes.Concat):
            return node
        target = nodes.EnvironmentAttribute("concatenate", lineno=node.lineno)
        return nodes.Call(target, node.nodes, [], None, None, lineno=node.lineno)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # naive local time on purpose: HF's templates see the same
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML and sorts keys; HF's does neither
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # a function, not the class: `dict.__subclasses__` and the like stay out of reach
    return dict(*args, **kwargs)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace in a chat template cannot store {name!r}")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _check_size(*sizes: int) -> None:
    if max(sizes) > MAX_TEXT:
        raise SecurityError(f"the chat template makes a text of more than {MAX_TEXT} characters")
