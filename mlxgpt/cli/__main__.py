"""`python -m mlxgpt.cli`."""

from mlxgpt.cli import main

if __name__ == "__main__":
    main()
