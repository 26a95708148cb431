"""Engines: one file each, found by listing this folder (``registry``), imported when used."""
