"""Why something could not be measured."""


class BenchError(Exception):
    """Something cannot be measured; the text says what and why."""
