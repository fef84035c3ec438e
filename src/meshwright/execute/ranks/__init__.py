"""The processes of a run: who talks to whom, and the collectives between them."""
