"""Artifacts: their files, their manifest, the reports of what was proved about them."""
