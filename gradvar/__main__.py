"""``python -m gradvar``."""

from gradvar.cli import main

if __name__ == "__main__":
    main()
