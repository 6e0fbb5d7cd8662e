"""Why an image could not be made."""


class BuildError(Exception):
    """A root file system could not be built; the text says why and what to do."""
