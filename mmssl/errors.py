"""The one error that is the user's to mend."""


class BadInput(ValueError):
    """A value, file or column that was given and cannot work. The message names it and the remedy."""


def first_line(error: BaseException) -> str:
    """Libraries explain at length; their first line names the fault."""
    return str(error).partition("\n")[0] or type(error).__name__
