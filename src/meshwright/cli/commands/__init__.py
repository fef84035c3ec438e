"""One module a group of commands; each command is parse, one call, render."""
