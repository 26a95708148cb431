"""Code that makes packages unimportable, for scripts in processes of their own."""

from __future__ import annotations

# Finders that no longer see some packages: as if those had never been installed.
BLOCKER = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {blocked!r}:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
