"""See the package docstring of meshwright."""
