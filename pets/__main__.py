"""Entry point of `python -m pets`."""

from pets.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
