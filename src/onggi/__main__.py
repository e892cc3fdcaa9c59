"""`python -m onggi`, the same as the `onggi` command (torchrun needs the module form)."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
