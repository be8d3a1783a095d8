"""The command edgetune, also as `python -m edgetune`."""

import sys


def main() -> None:
    try:
        from .cli import main as command  # here: modules load for a second, and Ctrl-C may come meanwhile
        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
