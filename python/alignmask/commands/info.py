"""`alignmask info`: what is installed and what runs where."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    if arguments:
        print(
            "usage: alignmask info\n\nVersions, build, processor, GPUs, and what each op runs on."
        )
        return 0 if arguments[0] in ("-h", "--help") else 2
    from alignmask.commands._installed import describe

    print(describe())
    return 0
