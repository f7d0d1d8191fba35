"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    """Returns the version, or `unknown` where the code runs without being installed."""
    try:
        return metadata.version("stabilab")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"
