"""Files of profiled graphs that papers published, read as a `Problem` and written from one.

`detect.read` recognises a file by its content; each format has a module of its own with `read`, `write` and `recognises`.
"""
