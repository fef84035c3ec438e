"""`python -m meshwright.cli` is `meshwright`."""

from . import main

if __name__ == "__main__":
    main()
