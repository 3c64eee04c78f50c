"""Conversations put together from frames must be what Jinja makes of them, to the character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.prepare.chat.conversations import Conversation, Turn
from steps.prepare.chat.frames import NAME
from steps.prepare.chat.template import FALLBACK, ChatTemplate, Refused

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in message %}{{- message.tool_calls | tojson }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0].content + '\n\n' %}{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for message in loop_messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token}}{% endif %}{% endfor %}"
)
FRAMED = {"chatml": CHATML, "llama 3": LLAMA_3, "gemma": GEMMA, "mistral": MISTRAL, "fallback": FALLBACK}

contents = st.text(
    st.sampled_from("ab \t\n'\"<>{}%\\é") | st.characters(codec="utf-8"), min_size=1, max_size=12
).filter(str.strip) | st.sampled_from([f" \0{NAME} 0\0 ", "{0}", "<|im_end|>", "  b  ", "\n\nx"])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    pairs = draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
    system = [Turn("system", draw(contents))] if draw(st.booleans()) else []
    asked = [(Turn("user", user), Turn("assistant", assistant)) for user, assistant in pairs]
    return (*system, *(turn for both in asked for turn in both))


def run(template: ChatTemplate, conversation: Conversation, *, generate: bool) -> str:
    return template._run([turn.to_dict() for turn in conversation], generate=generate)


@pytest.mark.parametrize("source", FRAMED.values(), ids=FRAMED)
@settings(deadline=None, max_examples=50)  # of each of the templates
@given(conversation=conversations(), generate=st.booleans())
def test_a_frame_gives_what_jinja_gives(source: str, conversation: Conversation, generate: bool) -> None:
    template = ChatTemplate(source, TOKENS, ["<|im_end|>"])
    roles = tuple(turn.role for turn in conversation)
    try:
        expected = run(template, conversation, generate=generate)
    except Refused:
        assert template._frame(roles, generate) is None
        return
    assert template._frame(roles, generate) is not None
    assert template._text(conversation, generate=generate) == expected


def printing(what: str, before: str = "") -> str:
    return f"{{% for message in messages %}}{{% set content = message.content %}}{before}{{{{ {what} }}}}{{% endfor %}}"


LOOKING = {
    "searches it": "{% for m in messages %}{% if '</think>' in m.content %}x{% endif %}{{ m.content }}{% endfor %}",
    "searches for it": "{% for m in messages %}{% if m.content in 'abc' %}x{% endif %}{{ m.content }}{% endfor %}",
    "compares it": "{% for m in messages %}{% if m.content == 'a' %}x{% endif %}{{ m.content }}{% endfor %}",
    "compares what it is joined to": "{% for m in messages %}{{ ('x' ~ m.content) == 'xa' }}{{ m.content }}{% endfor %}",
    "looks at its case": "{% for m in messages %}{% if m.content is lower %}x{% endif %}{{ m.content }}{% endfor %}",
    "splits it": printing("content.split('a')[-1]"),
    "takes its first character": printing("content[0]"),
    "takes characters": printing("content | first"),
    "measures it": printing("content | length"),
    "goes through it": "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}",
    "upper case": printing("content | upper"),
    "another method": printing("content.upper()"),
    "replaces in it": printing("content | replace('a', 'b')"),
    "as JSON": printing("message | tojson"),
    "formats it": printing("'%s' % content"),
    "formats a tuple": printing("'%s' % (content,)"),
    "formats by method": printing("'{}'.format(content)"),
    "joins it": printing("[content] | join('')"),
    "repeats it": printing("content * 2"),
    "trims what it is joined to": printing("(' x' + content) | trim"),
    "strips a character": printing("content.strip('a')"),
    "escapes it": "{% autoescape true %}" + printing("content") + "{% endautoescape %}",
    "prints it in a macro": "{% macro say(m) %}{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) | trim }}{% endfor %}",
    "catches the output": "{% for m in messages %}{% set x %} {{ m.content }} {% endset %}{{ x | trim }}{% endfor %}",
    "filters the output": "{% filter upper %}" + printing("content") + "{% endfilter %}",
}


@pytest.mark.parametrize("source", LOOKING.values(), ids=LOOKING)
def test_a_template_that_does_more_than_print_is_left_to_jinja(source: str) -> None:
    template = ChatTemplate(source, TOKENS, [])
    conversation = (Turn("user", " a<b"), Turn("assistant", "a</think>bA "))
    assert template._frame(("user", "assistant"), False) is None
    assert template._text(conversation, generate=False) == run(template, conversation, generate=False)


def test_a_blank_turn_is_left_to_jinja() -> None:
    source = "{% for m in messages %}{% if m.content | trim %}{{ m.role + m.content }}{% endif %}{% endfor %}"
    template = ChatTemplate(source, TOKENS, [])
    assert template._text((Turn("system", " "), Turn("user", "a")), generate=False) == "usera"
    assert template._text((Turn("system", "b"), Turn("user", "a")), generate=False) == "systembusera"


def test_frames_of_many_lengths_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from steps.prepare.chat import template as module

    monkeypatch.setattr(module, "MOST_FRAMES", 3)
    template = ChatTemplate(CHATML, TOKENS, [])
    for pairs in range(1, 9):
        conversation = (Turn("user", "a"), Turn("assistant", "b")) * pairs
        assert template._text(conversation, generate=False) == run(template, conversation, generate=False)
        assert len(template._frames) <= 3
