"""The SQL that a mart's contract may contain: one expression over a group's rows, and nothing else.

A contract is reviewed as code is, but looks like data: a file that could end the statement it is inserted
into, read another table or call any function of the server would be a program. So an expression consists
of columns, constants, operators and known functions; anything else is refused. PostgreSQL decides what it
means, and whether its columns exist.
"""

import re

FUNCTIONS = [
    "abs", "avg", "bool_and", "bool_or", "ceil", "char_length", "coalesce", "count",
    "date_part", "date_trunc", "extract", "floor", "greatest", "least", "length", "lower",
    "max", "min", "mod", "nullif", "percentile_cont", "percentile_disc", "round", "stddev",
    "stddev_pop", "sum", "trim", "upper", "var_pop", "variance",
]  # fmt: skip
# Words that an opening parenthesis may follow.
_OPENING = {
    *FUNCTIONS, "and", "between", "case", "cast", "decimal", "distinct", "else", "filter", "group", "in",
    "is", "like", "not", "numeric", "or", "then", "varchar", "when", "where", "within",
}  # fmt: skip
_QUERIES = {"select", "values", "table", "with"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|'')*')|(?P<quoted>"(?:[^"]|"")+")|(?P<number>\d+(?:\.\d+)?)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>::|<=|>=|<>|!=|\|\||[-+*/%(),<>=]))""",
    re.VERBOSE,
)


def check_expression(text: str) -> None:
    """Refuse what isn't one expression of columns, constants, operators and `FUNCTIONS`.

    Raises:
        ValueError: the message quotes what is refused.
    """
    text, place, depth = text.rstrip(), 0, 0
    kind, before = "sign", ""
    while place < len(text):
        match = _TOKEN.match(text, place)
        rest = text[place:].strip()
        if not match or rest.startswith(("--", "/*")):
            raise ValueError(f"can't read {rest[:20]!r}")
        if match["word"] and match["word"].lower() in _QUERIES:
            raise ValueError(f"{match['word']} asks for more than the group's rows")
        if match["sign"] == "(":
            depth += 1
            opens = before.lower() in _OPENING if kind == "word" else kind == "sign"
            if not opens or before == ")":
                raise ValueError(f"{before}() isn't one of {', '.join(FUNCTIONS)}")
        if match["sign"] == ")":
            depth -= 1
            if depth < 0:
                raise ValueError("it closes a parenthesis that it didn't open")
        kind = match.lastgroup or ""
        before, place = match[kind], match.end()
    if depth:
        raise ValueError("it leaves a parenthesis open")
