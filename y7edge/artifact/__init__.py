"""Artifacts: their files, their manifest, and the reports of their proofs."""
