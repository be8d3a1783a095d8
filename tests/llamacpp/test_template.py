"""What a chat template computes ends: in a sentence, soon, in little memory; and what templates do need works."""

import resource
import time

import pytest
from sometimes import mostly_slow
from vocabularies import TALK, TOOLS

from edgetune.errors import DataError, EdgetuneError, UnsupportedError
from edgetune.llamacpp.chat_template import LIMIT, fill

DOUBLED = ("{% set n = namespace(x=('ha',), y=('ha',)) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}"
           "{% set n.y = (n.y, n.y) %}{% endfor %}")
MILLION = "{% set x = 'a' * 1000000 %}"
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of which nothing is taken":
        "{% for a in range(9999) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}",
    "a long body": "{% for a in range(99999) %}" + "{% set b = a %}" * 5000 + "{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a power": "{{ 10**10000000 }}",
    "a power by and by": "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a long text": "{{ 'a' * 2**31 }}",
    "a long list": "{{ ([0] * 10**9) | length }}",
    "text on text": "{% for a in range(99999) %}" + "x" * 50000 + "{% endfor %}",
    "doubled by +": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled by a block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}"
                          "{% endset %}{% set n.x = y %}{% endfor %}",
    "kept slices": MILLION + "{% set n = namespace(x=[]) %}"
                   "{% for a in range(9999) %}{% set n.x = n.x + [x[1:]] %}{% endfor %}",
    "kept lists": "{% set n = namespace(x=0) %}{% for a in range(9999) %}"
                  "{% set n.x = [n.x" + ",0" * 9000 + "] %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "an indent": "{{ messages | tojson(indent=10**9) }}",
    "a separator": MILLION + "{{ range(9999) | list | tojson(separators=(x, x)) }}",
    "written out": DOUBLED + "{{ n.x }}", "as JSON": DOUBLED + "{{ n.x | tojson }}",
    "joined": DOUBLED + "{{ n.x ~ '' }}",
    "compared": DOUBLED + "{{ n.x == n.y }}", "hashed": DOUBLED + "{{ {}[n.x] }}", "a key": DOUBLED + "{{ {n.x: 1} }}",
    "looked up": DOUBLED + "{{ {}.get(n.x) }}", "a filter's": DOUBLED + "{{ n.x | string | length }}",
    "a test's": DOUBLED + "{{ n.x is eq n.y }}", "an error's": DOUBLED + "{{ raise_exception(n.x) }}",
    "formatted": DOUBLED + "{{ '%s' % [n.x] }}{{ '{}'.format(n.x) }}", "found": DOUBLED + "{{ [n.x].index(n.y) }}",
    "center": "{{ 'a' | center(10**9) }}", "ljust": "{{ 'a'.ljust(10**9) }}", "zfill": "{{ '1'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}", "bytes": "{{ 'a'.encode().ljust(10**9) }}",
    "%": "{{ '%999999999d' % 1 }}", "%*": "{{ '%*d' % (10**9, 1) }}", "%()": "{{ '%(a)999999999d' % {'a': 1} }}",
    "format": "{{ '{:999999999}'.format(1) }}", "format in format": "{{ '{:{}}'.format(1, 10**9) }}",
    "a long name in a format": "{{ '{0" + ".a" * 999 + ":999999999}'.format(1) }}",
    "the filter format": "{{ '%.999999999f' | format(1.0) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "replace": MILLION + "{{ x.replace('a', x) }}", "the filter replace": MILLION + "{{ x | replace('', x) }}",
    "join": MILLION + "{{ range(99999) | join(x) }}", "x.join": MILLION + "{{ x.join(range(9999) | map('string')) }}",
    "the filter indent": MILLION + "{{ ('\n' * 1000000) | indent(x) }}",
    "sum": "{% set x = range(9999) | list %}{{ ([x] * 9999) | sum(start=[]) | length }}",
    "strftime": "{{ strftime_now('%999999999d') }}", "round": "{{ 1.5 | round(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list | length }}", "slice": "{{ [1] | slice(10**9) | list | length }}",
    "in": "{% set x = range(99999) | list %}{% for a in range(99999) %}{% if -1 in x %}{% endif %}{% endfor %}",
    "reject": "{% set x = range(99999) | list %}{{ x | reject('in', x) | list | length }}",
    "read again and again": MILLION + "{% for a in range(99999) %}{% if x.find('ab') > 0 %}{% endif %}{% endfor %}",
    "compared again and again": MILLION + "{% set y = 'a' * 1000000 %}"
                                "{% for a in range(99999) %}{% if x == y %}{% endif %}{% endfor %}",
    "striptags": "{{ ('<!---->' * 1000000) | striptags }}",
    "parentheses": "{{ " + "(" * 40000 + "1" + ")" * 40000 + " }}", "a sum": "{{ 1" + "+1" * 40000 + " }}",
    "ifs": "{% if 1 %}" * 4000 + "{% endif %}" * 4000,
}


@pytest.mark.parametrize("name", mostly_slow(ENDLESS, [*ENDLESS][::3]))
def test_it_ends_in_a_sentence(name):
    """CPU seconds, so that a busy machine is no failure; memory as the peak of a process that could have taken more."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, limits[1]))  # the code before is not to take the whole machine
    before = peak()
    began = time.thread_time()
    try:
        with pytest.raises(EdgetuneError, match="the model's chat template"):
            fill(ENDLESS[name], messages=TALK[:2])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert time.thread_time() - began < 4
    assert peak() - before < 128 << 20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_template_as_long_as_may_be_compiles_in_seconds():
    began = time.thread_time()
    assert fill("{{ 'x' }}" * (LIMIT // 9)) == "x" * (LIMIT // 9)
    assert time.thread_time() - began < 10
    with pytest.raises(UnsupportedError, match=r"template has 100001 characters, the limit is 100000; use the model's"):
        fill("x" * (LIMIT + 1))


def test_a_large_conversation_is_given_more():
    """As many steps and bytes as it needs: 20,000 messages, and one of 8 MiB that is written eight times."""
    template = ("{% for m in messages %}{{ '<' + m['role'] + '>' }}{{ m['content'] | trim + '\n' }}"
                "{% if m.role == 'user' and not loop.last %}{{ '.' }}{% endif %}{% endfor %}")
    many = [{"role": role, "content": "word"} for _ in range(10_000) for role in ("user", "assistant")]
    assert fill(template, messages=many).count("word") == 20_000
    long = "0123456789abcdef" * (1 << 19)
    assert len(fill("{{ messages[0].content }}" * 8, messages=[{"content": long}])) == 8 * len(long)


@pytest.mark.parametrize(("template", "expected"), [
    ("{{ 'a' * 3 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ 7 % 4 }}{{ '%03d|%s' % (7, 'x') }}", "aaa1024[1, 2]3007|x"),
    ("{{ [1, 2, 3] | sum }}{{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}{{ [[1], [2]] | sum(start=[]) }}",
     "63[1, 2]"),
    ("{{ {'a': [1, {'b': 'é'}]} | tojson }}{{ [1] | tojson(indent=2) }}", '{"a": [1, {"b": "é"}]}[\n  1\n]'),
    ("{{ 'a-b'.split('-') | join('+') }}{{ '-'.join(['x', 'y']) }}{{ 'ab' | replace('a', 'c') }}", "a+bx-ycb"),
    ("{{ '{:>5}'.format('x') }}{{ '%5.1f' | format(2.25) }}{{ 'x' | center(3) }}{{ 'x'.ljust(3) }}|",
     "    x  2.2 x x  |"),
    ("{{ 'a' ~ 1 ~ none }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ (1, 2)[0] }}{{ 'a\nb' | indent(2) }}",
     "a1Nonebccba1a\n  b"),
    ("{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}{% call f(2) %}!{% endcall %}",
     "<1><2!>"),
    ("{% for a in [[1, [2]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "12"),
    ("{% for a in range(6) if a is odd %}{{ loop.index }}{{ a }}{% else %}none{% endfor %}", "112335"),
    ("{{ [3, 1, 2] | sort | first }}{{ 'a b' | title }}{{ {'b': 1, 'a': 2} | dictsort }}", "1A B[('a', 2), ('b', 1)]"),
    ("{{ tools | map(attribute='function.name') | list }}{{ 'x' if 'weather' in (tools | tojson) }}", "['weather']x"),
    ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(',') }}", "user,user"),
    ("{{ 12345678901234567890 | string }}{{ x | default(10 ** 12) }}", "123456789012345678901000000000000"),
    ("{% filter upper %}a{% endfilter %}{% set y %}b{% endset %}{{ y }}{% block z %}c{% endblock %}{{ self.z() }}",
     "Abcc"),
])
def test_what_templates_need_works(template, expected):
    assert fill(template, messages=TALK, tools=TOOLS) == expected


def test_its_limits_are_those_of_one_rendering():
    half = "{% for a in range(30000) %}{% endfor %}"
    for _ in range(5):
        assert fill(half) == ""
    with pytest.raises(DataError, match="too many steps for a conversation of this size; use the model's file"):
        fill(half * 5)
