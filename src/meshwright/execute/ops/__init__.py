"""How one op, and one parameter, is computed on local parts."""
