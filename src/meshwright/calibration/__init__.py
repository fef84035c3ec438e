"""Constants of one machine or one stack: measured here, or worked out from a few steps of the user's own."""

from .profile import Machine, Measured, Profile, load, save

__all__ = ["Machine", "Measured", "Profile", "load", "save"]
