"""`python -m meshwright` is `meshwright`."""

from .cli import main

if __name__ == "__main__":
    main()
