"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Something in what the user asked for is wrong; the message says what, and what to change.

    The command line prints it as one line and exits with 2. From Python it is a `ValueError`.
    """
