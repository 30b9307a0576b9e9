"""The grammar that the embedded model writes in: a task and its examples in, GBNF out.

It admits one `final_answer(…)` line in the forms of the examples, with the task's own numbers and words.
"""

import re
from collections.abc import Iterable, Sequence

from server.embedded_examples import Example

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORD = re.compile(r"[^\W\d_]+")
_SLOT = re.compile("OPENING|CLOSING|OPERATOR|FUNCTION|NUMBER|WORD")
_QUOTED = re.compile(r"[\"“'‘]([^\"“”'‘’\\\n]{1,60})[\"”'’]")

# Alternatives begin unlike each other where they can, and the depth is that of the examples: llama.cpp may try
# every token of the vocabulary against every alternative still open, and a grammar of expressions without a
# bound let the model, at a loss, nest `len(str(len(str(`.
_GRAMMAR_TOP = r"""
root ::= OPENING ("final_answer(" (text | form) ")" | maths) CLOSING
maths ::= "import math\nfinal_answer(math." ("factorial" | "gcd" | "lcm") "(" number (", " number)? "))"
form ::= number op exprTOP choice? | nestTOP tail? (op exprTOP choice?)? | word (tail (op exprTOP)? | op exprTOP | " if " exprTOP " else " word)
choice ::= " if " exprTOP " else " exprTOP
op ::= " " (OPERATOR) " "
func ::= FUNCTION
tail ::= "[" ("::-1" | expr0) "]" | ".count(" word ")" | ".upper()" | ".lower()" | ".title()"
name ::= [ncd]
text ::= "\"" [^"\\\n]{1,240} "\""
number ::= NUMBER
word ::= "\"" (WORD) "\""
range ::= "range(" expr0 ", " expr0 ")"
expr0 ::= value0 (op value0)*
value0 ::= number | name | word
nest0 ::= "[" expr0 (", " expr0)* "]"
"""

# One level of nesting.
_GRAMMAR_LEVEL = r"""
exprN ::= valueN (op valueN)*
valueN ::= number | word tail? | name | nestN tail?
nestN ::= func "(" exprM (loopN | ", reverse=True")? ")" | "[" exprM (loopN | (", " exprM)*) "]" | "(" exprM ")" | range
loopN ::= " for " name " in " (word | range | nestM) (" if " exprM)?
"""


def _grammar_of_depth(depth: int) -> str:
    levels = (
        _GRAMMAR_LEVEL.replace("N", str(n)).replace("M", str(n - 1)) for n in range(1, depth + 1)
    )
    return _GRAMMAR_TOP.replace("TOP", str(depth)) + "".join(levels)


_OPERATORS = (
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "==",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
    "and",
    "or",
    "in",
)
_FUNCTIONS = (
    "sum",
    "len",
    "max",
    "min",
    "sorted",
    "all",
    "any",
    "abs",
    "round",
    "int",
    "str",
    "list",
    "set",
)

_ANY_NUMBER = '[0-9]{1,12} ("." [0-9]{1,6})?'
_ANY_WORD = r'[^"\\\n]{1,60}'


def _literals(values: Iterable[str]) -> str:
    """Alternatives in GBNF. None at all is a character that no model writes, so that the rule stays valid."""
    return " | ".join('"' + v + '"' for v in dict.fromkeys(values)) or '"\\x01"'


def _constants(examples: Iterable[Example]) -> list[str]:
    """Numbers that the examples' code has and their tasks have not: factors, exponents, the 1 of `n + 1`."""
    return [n for e in examples for n in NUMBER.findall(e.code) if n not in NUMBER.findall(e.task)]


def _depth(code: str) -> int:
    deepest = depth = 0
    for character in code:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    return deepest


def make_grammar(
    question: str, examples: Sequence[Example], opening: str, closing: str, *, free: bool = False
) -> str:
    """GBNF for one code block, in the forms of the examples; `free` lifts the limits on literals and operators."""
    code = " ".join(e.code for e in examples)
    numbers = NUMBER.findall(question)
    words = [*_QUOTED.findall(question), *WORD.findall(question)][-60:] if '"' in code else []
    words += [w for w in ("even", "odd") if f'"{w}"' in code]
    slots = {
        "OPENING": f'"{opening}\\n"',
        "CLOSING": f'"\\n{closing}"',
        "OPERATOR": _literals(o for o in _OPERATORS if free or f" {o} " in code or o in question),
        "FUNCTION": _literals(f for f in _FUNCTIONS if free or f"{f}(" in code or f in question),
        "NUMBER": _ANY_NUMBER
        if free or not numbers
        else _literals((*numbers, *_constants(examples))),
        "WORD": _ANY_WORD if free else _literals(words),
    }
    grammar = _grammar_of_depth(max(_depth(e.code) for e in examples) + 1)
    return _SLOT.sub(lambda slot: slots[slot[0]], grammar)
