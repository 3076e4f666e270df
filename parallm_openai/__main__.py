"""The program `parallm-openai`, and `python -m parallm_openai`."""

from __future__ import annotations

from parallm_openai import interrupts


def main() -> None:
    # Before the imports, which take a while.
    interrupts.install()
    from parallm_openai import cli

    cli.main()


if __name__ == "__main__":
    main()
