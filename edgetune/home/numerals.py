"""Numbers in words."""


def spelled(number: int, language: str) -> str:
    """A number in words; in digits where the language has no rules for words."""
    from hassil.numbers import get_rbnf_engine
    try:
        return str(get_rbnf_engine(language).format_number(number).text).replace("­", "").replace("-", " ")
    except ValueError:
        return str(number)
