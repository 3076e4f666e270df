"""Regular expressions and Lark grammars: odd, wrong, and such that compiling them is an attack."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from hypothesis import strategies as st

from fuzz.hazards import Hazards
from fuzz.values import texts

Texts = st.SearchStrategy[Any]

ODD = [
    *(
        "",
        "a",
        "^a$",
        "a|",
        "(?i)yes",
        r"\p{Greek}{1,3}",
        r"[\s\S]{1,5}",
        "[[:alpha:]]+",
        "(?x) a b # c",
        "[^a]",
        ".",
        r"\x{1F44D}",
    ),
    *(
        "(",
        "[",
        "*a",
        "a{3,2}",
        "(?=a)b",
        "(?<!a)b",
        r"(a)\1",
        r"\b\w+\b",
        "(?P<n>a)(?P<n>b)",
        "[z-a]",
        r"\u12",
        "a**",
        "(?",
        "\\",
    ),
    *(
        "a++",
        "(?>a)b",
        r"\Qa\E",
        "(?R)",
        r"\K",
        "[a&&b]",
        "(|)*",
        "()*",
        "(a*)*b",
        "$a",
        "a^",
        r"\A\z",
        "(?s).*",
        "(?-u)\\xff",
        "[[]]",
    ),
]


def regex_bomb(kind: str, size: int) -> str:
    return {
        "counted": f"(a{{1,{size}}}){{1,{size}}}",
        "thrice": f"((a{{0,{size}}}b?){{0,{size}}}c?){{0,{size}}}",
        "classes": rf"(\w{{1,{size}}}\s){{1,{size}}}",
        "unicode": rf"[\p{{L}}\p{{N}}]{{1,{size}}}",
        "alternation": "|".join(f"word{i}x{i * i}" for i in range(size * 20)),
        "suffix": f"(a|b)*a(a|b){{{size // 10}}}",
        "nested": "(" * size + "a" + ")*" * size,
        "optional": "(a?)" * size + "a" * size,
        "groups": "".join(f"(?P<g{i}>a|b)" for i in range(size)),
        "long": "ab" * size * 100,
        "number": f"a{{{'9' * min(size, 40)}}}",
    }[kind]


def _short(hazards: Hazards) -> Texts:
    """Texts of which the longest are seconds of compiling, not minutes."""
    return texts(hazards).map(lambda text: text[:100_000])


@cache
def regexes(hazards: Hazards) -> Texts:
    kinds = [
        "counted",
        "thrice",
        "classes",
        "unicode",
        "alternation",
        "suffix",
        "nested",
        "optional",
        "groups",
        "long",
        "number",
    ]
    bombs = st.builds(regex_bomb, st.sampled_from(kinds), st.sampled_from([20, 100, 500, 1000]))
    return st.one_of(
        st.sampled_from(ODD),
        st.from_regex(r"[abc.|()\[\]{},0-9*+?^$\\-]{0,12}", fullmatch=True),
        _short(hazards),
        *hazards.only(bombs=bombs) * 2,
    )


LARKS = [
    *(
        "",
        "start: ",
        'start: ""',
        'start: "a" start |',
        'start: start "a" | "a"',
        "start: start",
        "start: a\na: b\nb: a",
    ),
    *('start: "a"~3..5', 'start: "a"{3,5}', "start: /a/ /(/", "start: UNDEFINED", 'x: "a"', 'start: "a"\nstart: "b"'),
    *(
        'start: <think> "a"',
        "start: <[5]>",
        "start: <[99999999]>",
        "start: <[0-2047]>",
        "start: <[^5]>",
        "start: <[*]>",
    ),
    *(
        'start: e "+" e\ne: e e | "a" | ',
        'start: (("a"?)*)*',
        "start: A\nA: A",
        'A: B "x"\nB: A\nstart: A',
        "start: /.*/ /.*/ /.*/",
    ),
    *(
        '%llguidance {}\nstart: "a"',
        '%llguidance {"no_forcing": true}\nstart: "a"',
        "%llguidance 3\nstart: /a/",
        "%llguidance {",
    ),
    *(
        '%llguidance {"allow_invalid_utf8": true}\nstart: /(?s:.)*/',
        '%llguidance {"allow_initial_skip": true}\n%ignore /a/\nstart: "b"',
    ),
    *(
        'start: %json {"type": "string"}',
        "start: %json {",
        "start: %json 3",
        'start: %json {"$ref": "#/x"}',
        "start: %regex {}",
    ),
    *(
        'start: %regex {"substring_words": "a b c"}',
        'start: %regex {"substring_chars": "abc"}',
        'start: %regex {"substring_chunks": ["a", 3]}',
    ),
    *(
        "%import common.INT\nstart: INT",
        "%import nothing.AT_ALL\nstart: AT_ALL",
        "%ignore /a*/\nstart: /b/",
        "%declare X\nstart: X",
    ),
    *(
        'start: %lark { start: "a" }',
        "start: @sub",
        "start: %lark {",
        'start[capture="x"]: "a"',
        "start[lazy]: /a*/",
        "start[max_tokens=2]: /a*/",
    ),
    *(
        "start[temperature=0.5]: /a*/",
        'start[suffix="b"]: /a*/',
        'start[stop=""]: /a*/',
        "start[max_tokens=-1]: /a/",
        "start[nonsense]: /a/",
    ),
    *(
        'start: "a" // comment',
        "// only\n",
        "start:\t/a/",
        "START: /a/",
        'start: "\\u0000"',
        'start: "\\ud800"',
        "start: /\\xff/",
        "?start: /a/",
    ),
    *(
        "start: A & B\nA: /a*/ & ~/aa/\nB: /a/",
        "start: T\nT: ~/(.|\\n)*/",
        "start: /a/i",
        "start: /a/xyz",
        'start: ("a" | "b")~0',
    ),
    *('start::0 : "a"', "start: x::5 y\nx: /a/\ny: /b/", "start: a::set_bit(0) %if is_ones([0:1])\na: /a/"),
]


def lark_bomb(kind: str, size: int) -> str:
    rules = {
        "chain": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(size)) + f'r{size}: "a"',
        "terminal chain": "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(size)) + f'R{size}: "a"',
        "doubling": "start: r0\n"
        + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(min(size, 60)))
        + f'r{min(size, 60)}: "a"',
        "doubling terminals": "start: R0\n"
        + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(min(size, 60)))
        + f'R{min(size, 60)}: "a"',
        "left recursion": "start: a0\n" + "".join(f'a{i}: a{(i + 1) % size} "x" | \n' for i in range(size)),
        "ambiguous": "start: s\ns: s s s | s s | /a/ | ",
        "alternatives": "start: " + " | ".join(f'"word{i}"' for i in range(size * 10)),
        "parentheses": "start: " + "(" * size + '"a"' + ")" * size,
        "repetition": f'start: ("a"{{0,{size}}} "b"){{0,{size}}}',
        "three repetitions": f"start: ((/a/{{0,{size}}}){{0,{size}}}){{0,{size}}}",
        "terminal bomb": f"start: T\nT: /(a{{1,{size}}}){{1,{size}}}/",
        "complement": f"start: T\nT: ~/(.*a.{{{size // 10}}})/ & /(b|a){{0,{size}}}/",
        "json": "start: %json " + json.dumps({"enum": [f"v{i}" for i in range(size * 10)]}),
        "many json": "start: "
        + " | ".join(f"j{i}" for i in range(size))
        + "".join(f'\nj{i}: %json {{"const": {i}}}' for i in range(size)),
        "substring": "start: %regex " + json.dumps({"substring_chars": "abcdefghij" * size}),
        "long literal": 'start: "' + "a" * size * 1000 + '"',
        "many ignores": "start: /a/\n" + "".join(f"%ignore /b{i}*/\n" for i in range(size)),
    }
    return rules[kind]


LARK_KINDS = (
    "chain|terminal chain|doubling|doubling terminals|left recursion|ambiguous|alternatives|parentheses|repetition|"
    "three repetitions|terminal bomb|complement|json|many json|substring|long literal|many ignores"
).split("|")


@cache
def larks(hazards: Hazards) -> Texts:
    bombs = st.builds(lark_bomb, st.sampled_from(LARK_KINDS), st.sampled_from([20, 100, 1000, 3000]))
    words = st.sampled_from(
        ["start", ":", '"a"', "/b/", "|", "(", ")", "*", "A", "b", "\n", "%json", "{", "}", "<[3]>", "~", "&"]
    )
    soup = st.lists(words, max_size=10).map(lambda all: "start: " + " ".join(all))
    return st.one_of(st.sampled_from(LARKS), soup, _short(hazards), *hazards.only(bombs=bombs) * 2)
