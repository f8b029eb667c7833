"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class UserError(ValueError):
    """Wrong input: the message says what, where and how to mend it, in one line.

    The command line prints the message alone and exits with status 2; a caller of the library sees an ordinary
    `ValueError`.
    """
