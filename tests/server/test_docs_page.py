"""The form of `/docs`: it offers our request fields, and every control has a name that a screen reader can say."""

from html.parser import HTMLParser
from importlib.resources import files

import pytest

PAGE = files("server").joinpath("static", "docs.html").read_text(encoding="utf-8")
CONTROLS = ("input", "select", "textarea")


class Form(HTMLParser):
    """Controls by id with their attributes, the values of every select, and which ids have a name."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: dict[str, dict[str, str | None]] = {}
        self.choices: dict[str, list[str | None]] = {}
        self.named: set[str | None] = set()
        self.ids: list[str] = []
        self._in_label = False
        self.feed(PAGE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        identifier = found.get("id")
        if identifier is not None:
            self.ids.append(identifier)
        if tag == "label":
            self._in_label = True
            self.named.add(found.get("for"))
        if tag in CONTROLS:
            assert identifier is not None
            self.controls[identifier] = found
            if self._in_label or found.get("aria-label"):
                self.named.add(identifier)
        if tag == "option":
            self.choices.setdefault(next(reversed(self.controls)), []).append(found.get("value"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self._in_label = False


@pytest.fixture(scope="module")
def form() -> Form:
    return Form()


def test_every_control_has_a_name(form: Form) -> None:
    assert set(form.controls) <= form.named
    assert len(set(form.ids)) == len(form.ids)


def test_the_sparsity_is_a_number_or_auto(form: Form) -> None:
    assert form.choices["mode"] == ["auto", "number"]
    assert form.choices["refine"] == ["", "true", "false"]
    assert (form.controls["sparsity"]["min"], form.controls["sparsity"]["max"]) == ("0", "0.95")
    assert form.controls["max_kl"]["step"] == "any"


def test_hints_and_scripts_refer_to_what_is_there(form: Form) -> None:
    described = {control.get("aria-describedby") for control in form.controls.values()} - {None}
    fetched = {part.split('"')[0] for part in PAGE.split('element("')[1:]}
    assert described
    assert described | fetched <= set(form.ids)


@pytest.mark.parametrize("field", ["glass_sparsity", "glass_max_kl", "glass_refine", "lambda"])
def test_the_body_has_our_fields(field: str) -> None:
    script = PAGE.split("function glassFields()")[1].split("\n}")[0]
    assert field in script
