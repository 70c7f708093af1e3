"""``basicsr prepare``: convert public datasets, or your own images, into the datasets that the option files expect."""

from __future__ import annotations


def run(arguments: list[str]) -> int:
    """Prepare public datasets, or your own images if the first argument is ``pairs``. Returns the exit code."""
    if arguments[:1] == ["pairs"]:
        from restormixer_arch.cli.prepare import own_images

        return own_images.run(arguments[1:])
    from restormixer_arch.cli.prepare import public_sets

    return public_sets.run(arguments)
