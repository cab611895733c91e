"""Templates: what they may do, what they may not, and that the next render works after the worst of them."""
import time

import pytest

from gramme.config import ModelError
from gramme.request import RequestError
from gramme.text.template import TemplateRenderer, find_template

OK = "{% for m in messages %}{{ m.content }}{% endfor %}"
HELLO = {"messages": [{"role": "user", "content": "hé <&> 🙂"}]}


def test_environment(renderer):
    assert renderer.render("{{ x|tojson }}", {"x": {"é": "<&>"}}) == '{"é": "<&>"}'
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert renderer.render(loop, {}) == "01"
    assert renderer.render("{{ '{0.__class__}'.format(1) }}", {}) == ""
    assert renderer.render("{% generation %}a{{ 1 }}{% endgeneration %}b", {}) == "a1b"
    assert renderer.render("  {% if true %}\nx\n  {% endif %}\n", {}) == "x\n"
    assert len(renderer.render("{{ strftime_now('%Y') }}", {})) == 4
    assert renderer.render(OK, HELLO) == "hé <&> 🙂"


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ raise_exception('x' * 100000) }}", "xxx"),
    ("{% if %}", "TemplateSyntaxError"), ("{{ nothing.at.all }}", "undefined"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"), ("{{ cycler.__init__.__globals__ }}", "unsafe|SecurityError"),
    ("{{ messages.append(1) }}", "unsafe|SecurityError"),
    ("{% for i in range(10**7) %}{% endfor %}", "Overflow"), ("{% include 'x' %}", "TypeError|loader"),
    ("{{ 'a' * 10**9 }}", "memory|characters"), ("{{ 'a'|center(10**9) }}", "memory|characters|longer")])
def test_failures_are_answers(renderer, template, message):
    with pytest.raises(RequestError, match=message) as caught:
        renderer.render(template, HELLO)
    assert len(str(caught.value)) < 400
    assert renderer.render(OK, HELLO) == "hé <&> 🙂"


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("bomb", ["{{ 9**(9**9) }}", LOOPS])
def test_bombs_end(bomb):
    renderer = TemplateRenderer(limit_s=0.3)
    try:
        start = time.monotonic()
        with pytest.raises(RequestError, match="longer"):
            renderer.render(bomb, HELLO)
        assert time.monotonic() - start < 10  # the child's start included
        assert renderer.render(OK, HELLO) == "hé <&> 🙂"
    finally:
        renderer.close()


def test_a_dead_child_is_replaced():
    renderer = TemplateRenderer()
    try:
        renderer._child.kill()
        renderer._child.wait()
        with pytest.raises(RequestError):
            renderer.render(OK, HELLO)
        assert renderer.render(OK, HELLO)
    finally:
        renderer.close()


def test_lookup(tmp_path):
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "a"}')
    assert find_template(tmp_path) == "a"
    config.write_text('{"chat_template": [{"name": "x", "template": "b"}, {"name": "default", "template": "c"}]}')
    assert find_template(tmp_path) == "c"
    assert find_template(tmp_path, name="x") == "b" and find_template(tmp_path, name="tool_use") is None
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("t")
    assert find_template(tmp_path, name="tool_use") == "t" and find_template(tmp_path) == "c"
    (tmp_path / "chat_template.jinja").write_text("d")
    assert find_template(tmp_path) == "d"
    (tmp_path / "mine").write_text("e")
    assert find_template(tmp_path, str(tmp_path / "mine")) == "e"
    with pytest.raises(ModelError, match="absent"):
        find_template(tmp_path, str(tmp_path / "absent"))


@pytest.mark.parametrize("content", ["{", "[]", "\"x\"", "[" * 100_000])
def test_broken_config(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer_config"):
        find_template(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_file_of_any_size_is_refused_unread(tmp_path, name):
    with (tmp_path / name).open("wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(ModelError, match=f"{name}.*must be a file of at most 4194304 bytes"):
        find_template(tmp_path)
