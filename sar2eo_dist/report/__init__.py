"""One self-contained HTML page about a run: what ran, what was kept and why, what was learned, how good it is. See page.py."""
